"""Signatures, wire messages and the backend: the same thing told three ways."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery import chord, group

from orchestrator.canvas.app import make_app
from orchestrator.canvas.compile import stage
from orchestrator.canvas.messages import STEP, read_step, step_message
from orchestrator.canvas.runtime import Verdict, attach_runtime
from orchestrator.domain.errors import ConfigError
from orchestrator.domain.ids import JobId, QueueName, StepPath, StepRef
from tests.support.fake_runtime import FakeRuntime

HEAD = StepRef(JobId("job"), StepPath("extract"), 2, QueueName("gpu"))
MEMBERS = [StepRef(JobId("job"), StepPath(f"assess/{n}"), 1, group=StepPath("assess")) for n in range(3)]
BODY = StepRef(JobId("job"), StepPath("assess"), 1)


@pytest.fixture
def app() -> Any:
    made = make_app("memory://")
    made.loader.import_default_modules()
    return made


def test_a_single_step_is_the_head_of_its_chain(app: Any) -> None:
    head = stage([HEAD], None, app=app)
    assert head.task == STEP
    assert head.args == ("job", "extract", 2)
    assert head.options["queue"] == "gpu"
    assert head.options["task_id"] == "job:extract:2"
    assert head.immutable


def test_a_fan_out_is_a_group(app: Any) -> None:
    found = stage(MEMBERS, None, app=app)
    assert isinstance(found, group)
    assert [one.args for one in found.tasks] == [("job", f"assess/{n}", 1) for n in range(3)]
    assert found.options["task_id"] == "job:assess"


def test_a_fan_out_with_a_join_is_a_chord(app: Any) -> None:
    found = stage(MEMBERS, BODY, app=app)
    assert isinstance(found, chord)
    assert found.body.args == ("job", "assess", 1)
    assert len(found.tasks) == 3
    json.dumps(found)


def test_an_empty_stage_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        stage([], BODY)


def test_the_message_says_what_the_signature_says(app: Any) -> None:
    for ref in (HEAD, *MEMBERS):
        signature = stage([ref], None, app=app)
        message = step_message(ref)
        assert message.id == signature.options["task_id"]
        assert message.queue == signature.options["queue"]
        assert message.headers["group"] == signature.options.get("group_id")
        args, kwargs, embed = json.loads(message.body)
        assert tuple(args) == signature.args
        assert kwargs == {}
        assert (embed["chord"] is None) == (ref.group is None)


def test_the_message_has_the_headers_celery_would_send(app: Any) -> None:
    theirs = app.amqp.as_task_v2("job:extract:2", STEP, ["job", "extract", 2], {}, ignore_result=True)
    ours = step_message(HEAD)
    assert ours.headers.keys() <= theirs.headers.keys()
    for name in ("task", "id", "root_id", "eta", "expires", "retries", "timelimit", "argsrepr", "kwargsrepr"):
        assert ours.headers[name] == theirs.headers[name], name
    assert json.loads(ours.body)[2].keys() == theirs.body[2].keys()


def test_reading_gives_back_what_was_written() -> None:
    for ref in (*MEMBERS, HEAD, StepRef(JobId("job"), StepPath(""), 0)):
        message = step_message(ref)
        request = message.headers | {"delivery_info": {"routing_key": ref.queue}}
        assert read_step(json.loads(message.body)[0], request) == ref


class TestBackend:
    def test_sends_the_body_that_a_settle_chose(self, app: Any) -> None:
        runtime = FakeRuntime()
        attach_runtime(app, lambda: runtime)
        app.backend.on_chord_part_return(None, "SUCCESS", Verdict(BODY))
        assert runtime.dispatcher.published == [BODY]
        app.orchestrator_runtime.stop()

    @pytest.mark.parametrize("result", [None, Verdict(), {"body": "forged"}, [1], "text"])
    def test_sends_nothing_otherwise(self, app: Any, result: object) -> None:
        app.backend.on_chord_part_return(None, "SUCCESS", result)

    def test_keeps_no_results(self, app: Any) -> None:
        app.backend.store_result("id", 1, "SUCCESS")
        with pytest.raises(NotImplementedError, match="jobs show"):
            app.backend.get_result("id")


class TestApp:
    @pytest.mark.parametrize("url", ["kafka://x", "", "redis://a;redis://b", "sqla+sqlite://"])
    def test_refuses_other_brokers(self, url: str) -> None:
        with pytest.raises(ConfigError, match="ORCHESTRATOR_BROKER_URL"):
            make_app(url)

    def test_tls_is_verified(self) -> None:
        assert make_app("rediss://h").connection_for_write().ssl["ssl_cert_reqs"].name == "CERT_REQUIRED"
        assert make_app("amqps://h").connection_for_write().ssl["cert_reqs"].name == "CERT_REQUIRED"

    def test_redis_publishes_in_batches_and_emulates_no_acks(self) -> None:
        connection = make_app("redis://h").connection_for_write()
        assert connection.transport.supports_batch_publish
        assert connection.transport_options["ack_emulation"] is False

    def test_a_queue_named_later_is_declared_like_the_others(self) -> None:
        queues = make_app("amqp://h", queues=("default",)).amqp.queues
        assert queues["gpu"].queue_arguments == queues["default"].queue_arguments
        assert queues["gpu"].exchange.name == ""

    def test_without_a_runtime_it_says_what_to_do(self) -> None:
        app = make_app("memory://")
        with pytest.raises(ConfigError, match="orchestrator worker"):
            app.backend.on_chord_part_return(None, "SUCCESS", Verdict(BODY))
