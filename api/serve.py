"""The application as a Ray Serve deployment. The only file of the API that imports Ray.

Invariant: a replica holds no state and no loop, so Serve may restart it at any time; the application is built inside the
replica from the settings, so nothing but a JSON text is pickled.
"""

from __future__ import annotations

from ray import serve

from cluster.settings import Settings

APPLICATION = "holdfast"
MAX_ONGOING_REQUESTS = 1000
"""Serve's default is 5, and every watcher of a stream holds one."""
POSTGRES_REPLICAS = 2


def build_application(settings: Settings):
    """The Serve application. One replica with SQLite, which means one node; PostgreSQL can have more."""
    text = settings.model_dump_json()

    def build():
        from api.app import create_app
        from cluster.session import keep_replica_on_loopback

        keep_replica_on_loopback()
        return create_app(Settings.model_validate_json(text))

    @serve.deployment(
        name="api",
        num_replicas=1 if settings.database.startswith("sqlite") else POSTGRES_REPLICAS,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        ray_actor_options={"num_cpus": 0.1},
        graceful_shutdown_timeout_s=10,
    )
    @serve.ingress(build)
    class Api:
        """The replica; Serve hands it the ASGI calls."""

    return Api.bind()


def deploy(settings: Settings) -> None:
    """Start Serve on the settings' host and port and deploy; returns when the application is up.

    Call in a process that is connected to Ray. Raises ``RuntimeError`` where the replica does not start.
    """
    # request_timeout_s stays unset: streams and long polls are long on purpose
    serve.start(proxy_location="HeadOnly", http_options={"host": settings.api_host, "port": settings.api_port})
    serve.run(build_application(settings), name=APPLICATION, route_prefix="/", blocking=False)


def shut_down() -> None:
    """Stop Serve and everything that it runs; open streams get ten seconds."""
    serve.shutdown()
