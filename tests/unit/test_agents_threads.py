"""Threads for synchronous agents under random cancellation: none is lost for good, none is started beyond the bound."""

import asyncio
import random
import threading

import pytest

from workers.agents.threads import AgentThreads

SIZE = 4


class Load:
    """Calls that take 0–4 ms each, counted while they run."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.never = threading.Event()
        self.lock = threading.Lock()
        self.running = 0
        self.most = 0

    def call(self, number: int, seconds: float) -> int:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        self.never.wait(seconds)
        with self.lock:
            self.running -= 1
        return number


async def some_cancelled(threads: AgentThreads, load: Load) -> None:
    tasks = []
    for number in range(300):
        seconds = load.random.choice((0, 0.001, 0.004))
        tasks.append(asyncio.create_task(threads.run(lambda n=number, s=seconds: load.call(n, s))))
        if load.random.random() < 0.3:
            await asyncio.sleep(load.random.choice((0, 0.002)))
        if load.random.random() < 0.5:
            load.random.choice(tasks).cancel()
    async with asyncio.timeout(30):
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for number, result in enumerate(results):
        assert result == number or isinstance(result, asyncio.CancelledError)
    assert sum(isinstance(result, int) for result in results) > 50


def settled(threads: AgentThreads) -> bool:
    with threads._changed:
        return threads._changed.wait_for(lambda: threads.lost == 0 and threads._threads <= SIZE, timeout=10)


@pytest.mark.parametrize("seed", range(8))
def test_under_random_cancellation_every_call_that_is_waited_for_returns(seed: int) -> None:
    print("seed", seed)
    threads, load = AgentThreads(SIZE), Load(seed)
    asyncio.run(some_cancelled(threads, load))
    assert settled(threads), (threads.lost, threads._threads)
    assert load.most <= 2 * SIZE
    threads.close()


def test_without_cancellation_no_more_run_at_once_than_the_size() -> None:
    threads, load = AgentThreads(SIZE), Load(0)

    async def all_at_once() -> list[int]:
        return await asyncio.gather(*(threads.run(lambda n=number: load.call(n, 0.001)) for number in range(200)))

    assert asyncio.run(all_at_once()) == list(range(200))
    assert load.most == SIZE
    threads.close()


def test_a_function_that_raises_after_all_is_reported_and_the_thread_lives_on() -> None:
    threads = AgentThreads(1)

    def raises() -> None:
        raise StopIteration

    async def both() -> int:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await threads.run(raises)
        return await threads.run(lambda: 1)

    assert asyncio.run(both()) == 1
    threads.close()


def test_a_result_that_comes_after_its_loop_is_gone_is_dropped() -> None:
    threads = AgentThreads(1)
    entered, leave = threading.Event(), threading.Event()

    def stays() -> None:
        entered.set()
        leave.wait(10)

    async def give_up() -> None:
        task = asyncio.create_task(threads.run(stays))
        await asyncio.to_thread(entered.wait, 10)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(give_up())
    leave.set()
    assert settled(threads)
    assert asyncio.run(threads.run(lambda: "next loop")) == "next loop"
    threads.close()
    with pytest.raises(RuntimeError, match="closed"):
        asyncio.run(threads.run(lambda: 1))
