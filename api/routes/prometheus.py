"""/metrics: the service's numbers in Prometheus' text format. Needs a key, as every route: give it to the scraper."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from api.cluster_view import cluster_resources
from api.context import Context, InContext
from api.schemas import JOB_STATUSES

router = APIRouter(tags=["service"])


class StoreCollector:
    """Reads the job store at each scrape, so that replicas agree and nothing has to be counted along."""

    def __init__(self, context: Context):
        self._context = context

    def collect(self) -> Iterator[Metric]:
        counts = self._context.store.count_jobs()
        jobs = GaugeMetricFamily("holdfast_jobs", "Jobs by status", labels=["status"])
        for status in JOB_STATUSES:
            jobs.add_metric([status], counts.get(status, 0))
        yield jobs
        yield GaugeMetricFamily("holdfast_queue_age_seconds", "How long the oldest queued job has waited", value=self._queue_age_s())
        cluster = cluster_resources(self._context.settings)
        if cluster is not None:
            resources = GaugeMetricFamily("holdfast_cluster_resources", "Total resources of the cluster", labels=["resource"])
            for name, amount in cluster.items():
                resources.add_metric([name], amount)
            yield resources

    def _queue_age_s(self) -> float:
        oldest = self._context.store.oldest_queued_at()
        return 0.0 if oldest is None else max(0.0, time.time() - datetime.fromisoformat(oldest).timestamp())


@router.get("/metrics", response_class=PlainTextResponse)
def get_prometheus_metrics(context: InContext) -> Response:
    """Jobs by status, age of the queue, HTTP counts and latencies, events sent."""
    registry = CollectorRegistry()
    registry.register(StoreCollector(context))
    return Response(generate_latest(registry) + generate_latest(context.metrics.registry), media_type=CONTENT_TYPE_LATEST)
