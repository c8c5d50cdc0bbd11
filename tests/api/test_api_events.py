"""The event list and the stream: resumed by Last-Event-ID, nothing lost, nothing twice, ends with the job."""

from __future__ import annotations

import threading

import httpx
import pytest

from api.client import ApiError, HoldfastClient, parse_events


def _events(store, job_id: str, first: int, last: int) -> None:
    for number in range(first, last + 1):
        store.append_event(job_id, kind="note", level="info", message=f"note {number}", data={"number": number}, stage=None)


@pytest.fixture
def job(client, spec) -> dict:
    return client.submit(spec)


def test_events_come_in_pages(http, store, spec):
    job = http.post("/v1/jobs", json=spec).json()
    start = http.get("/v1/jobs/demo/events").json()["data"]
    assert start[0]["seq"] == 1
    _events(store, job["id"], 1, 7)
    page = http.get("/v1/jobs/demo/events", params={"after": len(start), "limit": 5}).json()
    assert [event["data"]["number"] for event in page["data"]] == [1, 2, 3, 4, 5]
    assert page["has_more"] is True and page["last_id"] == str(len(start) + 5)
    rest = http.get("/v1/jobs/demo/events", params={"after": page["last_id"], "limit": 5}).json()
    assert [event["data"]["number"] for event in rest["data"]] == [6, 7]
    assert rest["has_more"] is False


def test_the_stream_of_a_finished_job_is_whole_and_closes(http, store, spec):
    job = http.post("/v1/jobs", json=spec).json()
    _events(store, job["id"], 1, 3)
    http.post(f"/v1/jobs/{job['id']}/cancel")
    answer = http.get("/v1/jobs/demo/events/stream")
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = list(parse_events(iter(answer.text.splitlines())))
    listed = http.get("/v1/jobs/demo/events").json()["data"]
    assert [event.data for event in events] == listed
    assert [event.seq for event in events] == list(range(1, len(listed) + 1))
    assert events[-1].type == "job.status" and events[-1].data["data"]["status"] == "cancelled"


def test_the_stream_resumes_after_the_last_event_id(http, store, spec):
    job = http.post("/v1/jobs", json=spec).json()
    _events(store, job["id"], 1, 5)
    http.post(f"/v1/jobs/{job['id']}/cancel")
    events = list(parse_events(iter(http.get("/v1/jobs/demo/events/stream", headers={"Last-Event-ID": "4"}).text.splitlines())))
    assert events[0].seq == 5
    bad = http.get("/v1/jobs/demo/events/stream", headers={"Last-Event-ID": "x"})
    assert (bad.status_code, bad.json()["errors"][0]["pointer"]) == (422, "/header/last-event-id")


def test_the_client_streams_live_until_the_end(client, store, job):
    seen: list[dict] = []
    reader = threading.Thread(target=lambda: seen.extend(client.stream(job["id"])))
    reader.start()
    _events(store, job["id"], 1, 20)
    store.request_cancel(job["id"], "now")
    reader.join(20)
    assert not reader.is_alive()
    assert [event["seq"] for event in seen] == _seqs(store, job["id"])
    assert len(seen) > 20
    assert seen[-1]["data"]["status"] == "cancelled"


def _seqs(store, job_id: str) -> list[int]:
    return [item.seq for item in store.list_events(job_id, after_seq=0, limit=500)]


class _Cutting(httpx.BaseTransport):
    """Passes requests on, and cuts every stream after a number of bytes, at any place."""

    def __init__(self, after_bytes: int):
        self._inner = httpx.HTTPTransport()
        self._after = after_bytes
        self.resumed_from: list[str] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = self._inner.handle_request(request)
        if not request.url.path.endswith("/stream"):
            return response
        self.resumed_from.append(request.headers["last-event-id"])
        return httpx.Response(response.status_code, headers=response.headers, stream=_CutStream(response.stream, self._after))


class _CutStream(httpx.SyncByteStream):
    def __init__(self, inner, after_bytes: int):
        self._inner, self._left = inner, after_bytes

    def __iter__(self):
        for chunk in self._inner:
            yield chunk[: self._left]
            self._left -= len(chunk)
            if self._left <= 0:
                raise httpx.ReadError("the line was cut")

    def close(self) -> None:
        self._inner.close()


def test_a_cut_stream_is_taken_up_where_it_was(server, key, store, spec):
    with HoldfastClient(server, key) as plain:
        job = plain.submit(spec)
    _events(store, job["id"], 1, 30)
    store.request_cancel(job["id"], "now")
    cutting = _Cutting(after_bytes=700)
    with HoldfastClient(server, key, transport=cutting, backoff_s=0.01) as client:
        seen = [event["seq"] for event in client.stream(job["id"])]
    assert seen == _seqs(store, job["id"])
    assert len(cutting.resumed_from) > 5
    assert cutting.resumed_from == sorted(cutting.resumed_from, key=int)


def test_following_logs_ends_with_the_job(client, store, job, settings):
    folder = settings.run_dir(job["id"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "driver.log").write_text("one\n")
    pieces = client.follow_logs(job["id"])
    text = next(pieces)
    with (folder / "driver.log").open("a") as file:
        file.write("two\n")
    store.request_cancel(job["id"], "now")
    assert text + "".join(pieces) == "one\ntwo\n"


def test_many_watchers_do_not_block_the_api(client, server, key, store, job):
    """Streams hold no thread: with sixty of them open, other calls are answered."""
    with httpx.Client(base_url=server, headers={"Authorization": f"Bearer {key}"}, limits=httpx.Limits(max_connections=100), timeout=10) as http:
        streams = [http.send(http.build_request("GET", f"/v1/jobs/{job['id']}/events/stream"), stream=True) for _ in range(60)]
        assert client.get(job["id"])["status"] == "queued"
        for stream in streams:
            stream.close()


def test_the_stream_of_an_unknown_job_is_an_error(client):
    with pytest.raises(ApiError) as caught:
        list(client.stream("nothing"))
    assert caught.value.status == 404
