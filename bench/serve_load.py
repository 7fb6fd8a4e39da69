"""Live clients against `onedva serve`: its capacity, five minutes at 70 % of it, then 150 %.

    python bench/serve_load.py -o LOAD.json                # 128x128 at 24 frames a second, about eight minutes
    python bench/serve_load.py --minutes 0.5 -o LOAD.json  # shows that it works

It starts a service of its own. A client sends the frames of a made-up clip at their rate and checks what comes back:
every frame once and in order. Capacity: clients are added until one is refused, or clips come later than they last.
Then that many clients times 0.7 for `--minutes`, with the service's memory; then 1.5 times as many want in: the rest
must be told 429, and 10 seconds after they have gone a new one must be in and served in time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import websockets
from websockets.asyncio.client import ClientConnection, connect

from onedva_runtime.clips import make_clip

SETTLE = 4.0  # seconds that a new client runs before its delays count
CLIP_FRAMES = 16


@dataclass
class Client:
    """What one client saw."""

    delays: list[tuple[float, float]] = field(default_factory=list)
    """(When, seconds from sending a clip's last frame until its packet came.)"""
    frames: int = 0
    """Frames that came back, all in order."""
    sent: int = 0
    let_go: bool = False
    """Whether the service ended the session to catch up."""
    problem: str | None = None


class Load:
    """Clients of one service."""

    def __init__(self, address: str, *, side: int, fps: int, tokens: int) -> None:
        self.address, self.side, self.fps = address.replace("http", "ws", 1), side, fps
        self.query = f"width={side}&height={side}&fps={fps}&tokens={tokens}"
        self.frames = [frame.tobytes() for frame in make_clip(96, side, side)]
        self.clients: list[tuple[Client, asyncio.Task[None], asyncio.Event]] = []
        self.refused = 0

    async def add(self) -> bool:
        """One more client; False where the service refuses it with 429."""
        opened = AsyncExitStack()
        address = f"{self.address}/v1/live/encode?{self.query}"
        try:
            connection = await opened.enter_async_context(connect(address, max_size=None, open_timeout=30))
        except websockets.InvalidStatus as error:
            if error.response.status_code != 429:
                raise
            self.refused += 1
            return False
        client, stop = Client(), asyncio.Event()
        self.clients.append((client, asyncio.create_task(self._run(opened, connection, client, stop)), stop))
        return True

    async def drop(self, count: int) -> list[Client]:
        """Let the newest clients end their videos in good order."""
        leaving = [self.clients.pop() for _ in range(min(count, len(self.clients)))]
        for _, _, stop in leaving:
            stop.set()
        await asyncio.gather(*(task for _, task, _ in leaving))
        return [client for client, _, _ in leaving]

    def prune(self) -> int:
        """Forget the clients that the service let go; return how many."""
        gone = [entry for entry in self.clients if entry[0].let_go]
        self.clients = [entry for entry in self.clients if not entry[0].let_go]
        return len(gone)

    def delays(self, since: float) -> list[float]:
        """Delays of all clips of the clients that are there, since a time."""
        return [delay for client, _, _ in self.clients for when, delay in client.delays if when >= since]

    async def _run(
        self, opened: AsyncExitStack, connection: ClientConnection, client: Client, stop: asyncio.Event
    ) -> None:
        sent_at: dict[int, float] = {}

        async def receive() -> None:
            async for message in connection:
                if isinstance(message, bytes):
                    continue
                facts = json.loads(message)
                if facts["type"] == "clip":
                    if facts["first_frame"] != client.frames:
                        client.problem = f"frame {client.frames} is missing: {facts['first_frame']} came"
                    client.frames = facts["first_frame"] + facts["frames"]
                    now = time.monotonic()
                    client.delays.append((now, now - sent_at[client.frames - 1]))
                    for number in range(facts["first_frame"], client.frames):
                        del sent_at[number]
                elif facts["type"] == "error":
                    client.let_go = facts["code"] == "busy"
                    client.problem = None if client.let_go else facts["message"]

        receiving = asyncio.create_task(receive())
        start = time.monotonic()
        try:
            while not stop.is_set() and not receiving.done():
                number = client.sent
                stamp = round(number * 1e6 / self.fps).to_bytes(8, "little", signed=True)
                sent_at[number] = time.monotonic()
                await connection.send(stamp + self.frames[number % len(self.frames)])
                client.sent += 1
                await asyncio.sleep(max(0.0, start + client.sent / self.fps - time.monotonic()))
            await connection.send('{"type": "end"}')
            await asyncio.wait_for(receiving, 60)
        except (websockets.ConnectionClosed, TimeoutError) as error:
            if not client.let_go:
                client.problem = client.problem or f"broke off: {error}"
        finally:
            receiving.cancel()
            await opened.aclose()
        if client.frames != client.sent and client.problem is None and not client.let_go:
            client.problem = f"{client.sent} frames went out, {client.frames} came back"


def spread(delays: list[float]) -> dict[str, float]:
    """p50, p99 and the largest, in milliseconds."""
    if not delays:
        return {}
    p50, p99 = np.percentile(delays, [50, 99])
    return {
        "p50_ms": round(1e3 * float(p50), 1),
        "p99_ms": round(1e3 * float(p99), 1),
        "max_ms": round(1e3 * max(delays), 1),
    }


def resident(pid: int) -> float:
    """Megabytes that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def capacity(load: Load, *, most: int, step_s: float) -> dict[str, Any]:
    """Add clients until one is refused or clips come later than they last."""
    late = CLIP_FRAMES / load.fps
    found, why = 0, "as many as were tried"
    while found < most:
        if not await load.add():
            why = "the next was refused with 429"
            break
        start = time.monotonic() + step_s / 3
        await asyncio.sleep(step_s)
        delays = load.delays(start)
        if delays and np.percentile(delays, 90) > late:
            why = f"with the next, clips came later than the {late:.2f} s that they last"
            break
        found = len(load.clients)
        print(f"{found} clients: {spread(delays)}", flush=True)
    gone = await load.drop(len(load.clients))
    return {"clients": found, "why": why, "problems": [client.problem for client in gone if client.problem]}


async def steady(load: Load, pid: int, *, clients: int, minutes: float) -> dict[str, Any]:
    """Clients for some minutes: their delays, their frames, the service's memory."""
    while len(load.clients) < clients and await load.add():
        await asyncio.sleep(0.2)
    await asyncio.sleep(SETTLE)
    start = time.monotonic()
    memory: list[float] = []
    while time.monotonic() < start + 60 * minutes:
        memory.append(resident(pid))
        await asyncio.sleep(1)
    quarter = max(1, len(memory) // 4)
    second, last = statistics.mean(memory[quarter : 2 * quarter]), statistics.mean(memory[3 * quarter :])
    return {
        "clients": len(load.clients),
        "minutes": minutes,
        **spread(load.delays(start)),
        "clips": len(load.delays(start)),
        "memory_mb": {"second_quarter": second, "last_quarter": last, "growth": last - second},
    }


async def overload(load: Load, *, wanted: int, seconds: float) -> dict[str, Any]:
    """As many clients as are wanted, of which some are refused; and how it goes on when the new ones have gone."""
    before, refused = len(load.clients), load.refused
    while len(load.clients) + load.refused - refused < wanted:
        await load.add()
    start = time.monotonic()
    let_go = 0
    while time.monotonic() < start + seconds:  # those that were refused try again
        let_go += load.prune()
        for _ in range(wanted - len(load.clients)):
            await load.add()
        await asyncio.sleep(2)
    let_go += load.prune()
    during, stayed = spread(load.delays(start)), len(load.clients)
    gone = await load.drop(max(0, len(load.clients) - before))
    start = time.monotonic()
    again = None
    while time.monotonic() < start + 30:
        if await load.add():
            again = time.monotonic() - start
            break
        await asyncio.sleep(0.25)
    await asyncio.sleep(max(0.0, start + 10 - time.monotonic()))
    settled = time.monotonic()
    await asyncio.sleep(10)
    return {
        "wanted": wanted,
        "stayed": stayed,
        "refused_429": load.refused - refused,
        "let_go": let_go,
        "during": during,
        "next_client_after_s": again,
        "ten_seconds_later": spread(load.delays(settled)),
        "problems": [client.problem for client in gone if client.problem],
    }


async def run(options: argparse.Namespace, address: str, pid: int) -> dict[str, Any]:
    """All of it."""
    load = Load(address, side=options.side, fps=options.fps, tokens=options.tokens)
    found = await capacity(load, most=options.most, step_s=options.step)
    print(f"capacity: {found}", flush=True)
    part = max(1, int(0.7 * found["clients"]))
    at_70 = await steady(load, pid, clients=part, minutes=options.minutes)
    print(f"at 70 %: {at_70}", flush=True)
    at_150 = await overload(load, wanted=max(part + 1, round(1.5 * found["clients"])), seconds=options.overload)
    print(f"at 150 %: {at_150}", flush=True)
    clients = await load.drop(len(load.clients))
    problems = [client.problem for client in clients if client.problem]
    return {
        "capacity": found,
        "at_70": at_70,
        "at_150": at_150,
        "frames": sum(c.frames for c in clients),
        "problems": problems,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0, help="at 70 %%")
    parser.add_argument("--overload", type=float, default=30.0, help="seconds at 150 %%")
    parser.add_argument("--step", type=float, default=9.0, help="seconds per client while capacity is looked for")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--fps", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--most", type=int, default=64, help="clients")
    parser.add_argument("--serve", default="", help="options of onedva serve, as in '--backend onnxruntime'")
    options = parser.parse_args()
    command = [sys.executable, "-c", "from onedva.cli import main; main()", "serve", "--port", "0"]
    service = subprocess.Popen([*command, *options.serve.split()], stdout=subprocess.PIPE, text=True)
    try:
        assert service.stdout is not None
        address = service.stdout.readline().strip()
        wait_ready(address)
        result = asyncio.run(run(options, address, service.pid))
    finally:
        service.terminate()
        service.wait(60)
    result |= {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()}
    result |= {"side": options.side, "fps": options.fps, "tokens": options.tokens, "serve": options.serve}
    print(json.dumps(result, indent=2))
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")


def wait_ready(address: str) -> None:
    """Return when the service is ready; raise RuntimeError where it does not get so."""
    from urllib.error import URLError
    from urllib.request import urlopen

    for _ in range(240):
        try:
            urlopen(f"{address}/readyz", timeout=5).read()
            return
        except URLError:
            time.sleep(0.5)
    raise RuntimeError("the service did not get ready")


if __name__ == "__main__":
    main()
