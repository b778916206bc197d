"""Where does a batch of a million cases on up to 1,024 workers give out?

A simulation of discrete events, with the schedule of `medals_rt.pipeline.batch`: each worker claims
and reads one case ahead, runs the network, and writes behind. What they share are queues, first
come, first served: the bytes of the file server, its operations (or, with Ray, those of the actor
that holds the cells), and at the end the one process that writes the tables. Workers are lost at
random and come back; what they had in hand is free when the server's lease has run out. Times of
steps are parameters, to be taken from a run's reports; the defaults are assumptions that the report
lists.
"""

import argparse
import heapq
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from reporting import today, write_report


@dataclass(frozen=True)
class Setting:
    """What is simulated.

    Attributes
    ----------
    workers, cases
        How many.
    read_s, network_s, write_s
        Seconds of a step without waiting for others; `network_s` on average, with a standard
        deviation of half of that.
    read_mb, write_mb
        Bytes of a case.
    server_mb_s
        Bytes a second of the file server.
    calls
        Calls a case to what all share: the file server's operations, or the actor's.
    calls_s
        Such calls a second.
    hours_between_losses
        Of one worker, on average.
    lease_s, restart_s
        After a loss: until its cases are free, and until it works again.
    entry_ms
        The tables' process: milliseconds a case.
    """

    workers: int
    cases: int = 1_000_000
    read_s: float = 1.0
    network_s: float = 10.0
    write_s: float = 1.0
    read_mb: float = 100.0
    write_mb: float = 1.0
    server_mb_s: float = 5_000.0
    calls: int = 60
    calls_s: float = 10_000.0
    hours_between_losses: float = 200.0
    lease_s: float = 90.0
    restart_s: float = 120.0
    entry_ms: float = 0.3


class Queue:
    """A server that all share: first come, first served."""

    def __init__(self, rate: float) -> None:
        self.rate, self.free_at, self.busy_s = rate, 0.0, 0.0

    def serve(self, now: float, amount: float) -> float:
        """Return when this amount is served."""
        took = amount / self.rate
        self.free_at = max(now, self.free_at) + took
        self.busy_s += took
        return self.free_at


class Simulation:
    """A batch while it is simulated; a method for each thing that happens to a worker."""

    def __init__(self, setting: Setting, seed: int) -> None:
        self.setting = setting
        self.dice = random.Random(seed)  # noqa: S311 - a simulation
        self.data, self.calls = Queue(setting.server_mb_s), Queue(setting.calls_s)
        self.left, self.done, self.repeated = setting.cases, 0, 0
        self.network_free = [0.0] * setting.workers
        self.in_hand = [0] * setting.workers
        self.lives = [0] * setting.workers
        # time, order, what, worker, its life: a loss ends what was begun in a life
        self.events: list[tuple[float, int, str, int, int]] = []
        self.order = 0
        for worker in range(setting.workers):
            self.later(self.dice.uniform(0, setting.network_s), "read", worker)
            self.lose_later(0.0, worker)

    def run(self) -> float:
        """Return the seconds until all cases are done."""
        now = 0.0
        while self.done < self.setting.cases:
            now, _, what, worker, life = heapq.heappop(self.events)
            if what == "back" or life == self.lives[worker]:
                getattr(self, what)(now, worker)
        return now

    def later(self, time: float, what: str, worker: int) -> None:
        """Let something happen to a worker."""
        self.order += 1
        heapq.heappush(self.events, (time, self.order, what, worker, self.lives[worker]))

    def lose_later(self, now: float, worker: int) -> None:
        """Choose when a worker is lost."""
        hours = self.setting.hours_between_losses
        self.later(now + self.dice.expovariate(1 / (3600 * hours)), "lost", worker)

    def read(self, now: float, worker: int) -> None:
        """Claim and read a case."""
        if self.left == 0:
            self.later(now + 1.0, "read", worker)  # waits for what others have in hand
            return
        self.left -= 1
        self.in_hand[worker] += 1
        claimed = self.calls.serve(now, self.setting.calls / 2)
        here = max(claimed, self.data.serve(now, self.setting.read_mb))
        self.later(here + self.setting.read_s, "compute", worker)

    def compute(self, now: float, worker: int) -> None:
        """Run the network as soon as it is free, and read the next case meanwhile."""
        begin = max(now, self.network_free[worker])
        took = self.dice.gammavariate(4.0, self.setting.network_s / 4.0)
        self.network_free[worker] = begin + took
        self.later(begin, "read", worker)
        self.later(begin + took, "write", worker)

    def write(self, now: float, worker: int) -> None:
        """Write and settle a case."""
        told = self.calls.serve(now, self.setting.calls / 2)
        there = max(told, self.data.serve(now, self.setting.write_mb))
        self.later(there + self.setting.write_s, "end", worker)

    def end(self, _: float, worker: int) -> None:
        """Count a case."""
        self.in_hand[worker] -= 1
        self.done += 1

    def lost(self, now: float, worker: int) -> None:
        """Lose a worker, and what it had in hand: others take that up at the end of their pass."""
        self.lives[worker] += 1
        self.repeated += self.in_hand[worker]
        self.left += self.in_hand[worker]
        self.in_hand[worker] = 0
        self.later(now + self.setting.lease_s + self.setting.restart_s, "back", worker)

    def back(self, now: float, worker: int) -> None:
        """Start a lost worker again."""
        self.network_free[worker] = now
        self.later(now, "read", worker)
        self.lose_later(now, worker)


def simulate(setting: Setting, seed: int) -> dict[str, float]:
    """Run a batch and return its hours, and how busy what is shared was."""
    simulation = Simulation(setting, seed)
    seconds = simulation.run()
    return {
        "hours": seconds / 3600,
        "efficiency": setting.cases * setting.network_s / setting.workers / seconds,
        "server_bytes_busy": simulation.data.busy_s / seconds,
        "server_calls_busy": simulation.calls.busy_s / seconds,
        "repeated_cases": simulation.repeated,
        "tables_minutes": setting.cases * setting.entry_ms / 60_000,
    }


SCENES = {
    "one file server (5 GB/s, 10,000 operations/s), 10 s a case": {},
    "the same, 2 s a case": {"network_s": 2.0},
    "parallel file system (100 GB/s, 200,000 operations/s), 2 s a case": {
        "network_s": 2.0, "server_mb_s": 100_000.0, "calls_s": 200_000.0,
    },
    "Ray: one actor holds the cells (2,000 calls/s), object store of 100 GB/s, 10 s a case": {
        "server_mb_s": 100_000.0, "calls": 12, "calls_s": 2_000.0,
    },
    "machines lost every 10 hours each, parallel file system, 10 s a case": {
        "server_mb_s": 100_000.0, "calls_s": 200_000.0, "hours_between_losses": 10.0,
    },
}  # fmt: skip


def main() -> None:
    """Simulate, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="report, without ending")
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 64, 256, 1024])
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for scene, changes in SCENES.items():
        for workers in given.workers:
            setting = replace(Setting(workers, given.cases), **changes)
            found = simulate(setting, given.seed)
            rows.append({"scene": scene, **asdict(setting), **found})
            print(scene, workers, found, flush=True)
    report = {"date": today(), "seed": given.seed, "rows": rows}
    write_report(given.output, report, as_markdown(report))


def as_markdown(report: dict[str, Any]) -> str:
    """Write the report for people."""
    setting = asdict(Setting(1))
    lines = [
        f"# A million cases, simulated ({report['date']}, seed {report['seed']})",
        "",
        "Efficiency is the time that the networks alone would take, divided by the simulated time.",
        "What is busy near 100 % is what gives out. Assumed where nothing else is said:",
        ", ".join(f"{name} {value:g}" for name, value in setting.items() if name != "workers")
        + ".",
    ]
    scene = ""
    for row in report["rows"]:
        if row["scene"] != scene:
            scene = row["scene"]
            lines += [
                "",
                f"## {scene[0].upper()}{scene[1:]}",
                "",
                "| workers | hours | efficiency | bytes busy | calls busy | again | tables, min |",
                "|---:|---:|---:|---:|---:|---:|---:|",
            ]
        lines.append(
            f"| {row['workers']:,} | {row['hours']:,.1f} | {row['efficiency']:.0%} "
            f"| {row['server_bytes_busy']:.0%} | {row['server_calls_busy']:.1%} "
            f"| {row['repeated_cases']:,} | {row['tables_minutes']:.0f} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
