"""The contract review with a model: a real endpoint on loopback speaks the chat protocol; tokens and cost are shown."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.acceptance.conftest import REPOSITORY, Shell

FLOW = REPOSITORY / "examples" / "contract_review" / "workflow-chat.yaml"


def answer(prompt: str) -> dict[str, Any]:
    """What a model might say: a finding that quotes the clause; a review that quotes the dossier's evidence."""
    if clause := re.search(r"<clause>\n(.*)\n</clause>", prompt, re.DOTALL):
        quote = " ".join(clause[1].split()[:8])
        finding = {
            "rule": "risk-assumed",
            "topic": "general",
            "weight": 0.3,
            "why": "the reader bears it",
            "quote": quote,
        }
        return {"topics": ["general"], "findings": [finding]}
    dossier = json.loads(next(line for line in prompt.splitlines() if line.startswith('{"facts"')))
    return {"markdown": f"# Contract review: {dossier['facts']['title']}\n\n## 1. Verdict\n\nRead it with care.\n"}


class Model(BaseHTTPRequestHandler):
    """An OpenAI-compatible chat completion."""

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, request["model"], self.headers["Idempotency-Key"]))  # type: ignore[attr-defined]
        message = {"role": "assistant", "content": json.dumps(answer(request["messages"][-1]["content"]))}
        usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        body = json.dumps({"id": "1", "model": request["model"], "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def model() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    server.seen = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_the_review_with_a_model_shows_tokens_and_cost(shell: Shell, model: ThreadingHTTPServer) -> None:
    environment = {
        "CHAT_BASE_URL": f"http://127.0.0.1:{model.server_port}/v1",
        "CHAT_MODEL": "small-model",
    }
    done = shell.run("run", FLOW, "--input", f"contract=@{REPOSITORY / 'LICENSE'}", "--json", **environment)
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)
    assert output["markdown"].startswith("# Contract review: ")
    assert output["json"]["dossier"]["verdict"]
    seen: list[tuple[str, str, str]] = model.seen  # type: ignore[attr-defined]
    assert {(path, name) for path, name, _ in seen} == {("/v1/chat/completions", "small-model")}
    assert len({key for _, _, key in seen}) == len(seen)
    calls = len(seen)
    assert f"{calls * 1100:,} tokens" in done.stderr or f"{calls * 1100} tokens" in done.stderr, done.stderr
    assert re.search(r"\$0\.\d+", done.stderr), done.stderr


def test_without_an_endpoint_the_reason_and_the_mend_are_said(shell: Shell) -> None:
    done = shell.run("run", FLOW, "--input", f"contract=@{REPOSITORY / 'LICENSE'}")
    assert done.returncode == 1
    assert "ORCHESTRATOR_CHAT_BASE_URL" in done.stderr
