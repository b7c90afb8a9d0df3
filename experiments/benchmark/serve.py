"""Latency of a running server: `python experiments/benchmark/serve.py http://127.0.0.1:8000 picture.jpg`.

Each client sends its next picture when it has received the answer to the last one. The script prints a row
for each number of clients: requests, failures, median and 95th percentile in milliseconds, pictures per
second. It needs httpx.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

import httpx

CLIENTS, REQUESTS = (1, 8, 64), 192


@dataclass(frozen=True)
class Load:
    """The result for one number of clients. `milliseconds` lists the latencies of requests answered with
    200."""

    clients: int
    milliseconds: tuple[float, ...]
    failures: tuple[str, ...]
    seconds: float

    def percentile(self, percent: int) -> float:
        if len(self.milliseconds) < 2:
            return self.milliseconds[0] if self.milliseconds else float("nan")
        return quantiles(self.milliseconds, n=100, method="inclusive")[percent - 1]

    def row(self) -> str:
        rate = len(self.milliseconds) / self.seconds
        return (
            f"{self.clients:>7} {len(self.milliseconds) + len(self.failures):>8} {len(self.failures):>8} "
            f"{self.percentile(50):>8.0f} {self.percentile(95):>8.0f} {rate:>10.1f}"
        )


HEADER = f"{'clients':>7} {'requests':>8} {'failures':>8} {'p50 ms':>8} {'p95 ms':>8} {'pictures/s':>10}"


async def load(address: str, pictures: Sequence[bytes], clients: int, requests: int) -> Load:
    """Send `requests` requests of one picture each, from `clients` clients at once."""
    milliseconds, failures = [], []
    numbers = iter(range(requests))
    limits = httpx.Limits(max_connections=clients)

    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as http:

        async def client() -> None:
            for number in numbers:
                start = time.perf_counter()
                try:
                    files = {"images": pictures[number % len(pictures)]}
                    answer = await http.post("/v1/detect", files=files)
                except httpx.HTTPError as error:
                    failures.append(f"{type(error).__name__}: {error}")
                    continue
                if answer.status_code == 200:
                    milliseconds.append(1000 * (time.perf_counter() - start))
                else:
                    failures.append(f"{answer.status_code}: {answer.text[:200]}")

        start = time.perf_counter()
        await asyncio.gather(*[client() for _ in range(clients)])
        seconds = time.perf_counter() - start
    return Load(clients, tuple(milliseconds), tuple(failures), seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address")
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--clients", default=",".join(map(str, CLIENTS)))
    parser.add_argument("--requests", type=int, default=REQUESTS)
    arguments = parser.parse_args()
    contents = [path.read_bytes() for path in arguments.pictures]
    print(HEADER)
    for clients in map(int, arguments.clients.split(",")):
        result = asyncio.run(load(arguments.address, contents, clients, arguments.requests))
        print(result.row(), flush=True)
        for failure in sorted(set(result.failures)):
            print(f"  {failure}")


if __name__ == "__main__":
    main()
