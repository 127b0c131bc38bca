"""How far a cluster goes, before there is one: the real scheduler in virtual time, from 1 simulator node to 512.

    python -m benchmarks.pipeline.simulate_cluster                       # all tables: ten minutes on one core
    python -m benchmarks.pipeline.simulate_cluster --nodes 8 16 --replicas 2        # one's own: the first table alone
    python -m benchmarks.pipeline.simulate_cluster --node-chunks-per-s 227 --row-ms 8.0 --nodes 1 2 4 --replicas 2
    python -m benchmarks.pipeline.simulate_cluster --validate            # beside real runs of threads on this machine

Defaults are measured: a node is two cores that draw LIBERO in software at full detail (docs/environments.md), a replica the
7B policy in FP8 on an H100 (docs/model.md), calls of Ray are what `python -m benchmarks.pipeline.driver_costs` gives, copies of
pictures what `benchmarks/pipeline/test_overhead.py` does. Everything is in chunks (decisions of one env) per second.
"""

import argparse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from benchmarks.pipeline.cluster_spec import ClusterSpec, Driver, Network, Replicas, Simulators, Training
from benchmarks.pipeline.cluster_validation import compare
from benchmarks.pipeline.virtual_cluster import Played, VirtualRank, play
from vla_train.config import RolloutConfig

RAY = Driver(python=1.0, send_s=500e-6, receive_s=240e-6, number_s=11e-6, call_s=190e-6, gather_s=100e-6, record_s=40e-6)
"""Pictures of 256 x 256 pixels, through Ray, on two cores."""
GROUP_SIZE = 8
MEAN_LENGTH = 50
"""Decisions of an episode (`paper_lengths`)."""
NODES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
REPLICAS = (1, 2, 4, 8, 16)


def cluster(options: argparse.Namespace, *, nodes: int, replicas: int, ranks: int = 1) -> ClusterSpec:
    """What each of so many ranks drives; an iteration has 512 episodes, or one for each slot where these are more."""
    slots = nodes * options.workers_per_node * options.envs_per_worker
    chunk_s = 1 / options.node_chunks_per_s
    return ClusterSpec(
        rollout=RolloutConfig(groups_per_iteration=max(512, slots) // GROUP_SIZE // ranks, group_size=GROUP_SIZE),
        simulators=Simulators(
            nodes=nodes // ranks,
            workers_per_node=options.workers_per_node,
            envs_per_worker=options.envs_per_worker,
            slot_chunk_s=chunk_s,
            slot_reset_s=chunk_s,
            sigma=0.2,
            node_sigma=0.1,
        ),
        replicas=Replicas(count=replicas // ranks, call_s=options.call_ms / 1000, row_s=options.row_ms / 1000),
        network=Network(latency_s=2.5e-3, bytes_per_s=options.gbit_per_s / 8 * 1e9, observation_bytes=256 * 256 * 3),
        driver=RAY,
    )


def measure(spec: ClusterSpec, *, ranks: int = 1) -> Played:
    """What is left when everything has settled: the first episode of each slot is not counted."""
    virtual = [VirtualRank(spec, rank=rank, size=ranks) for rank in range(ranks)]
    slots = ranks * spec.simulators.nodes * spec.simulators.workers_per_node * spec.simulators.envs_per_worker
    play(virtual, decisions=slots * MEAN_LENGTH)
    return play(virtual, decisions=max(25_000, slots * MEAN_LENGTH // 2))


def row(*cells: object) -> None:
    """Print a line of a table."""
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def head(*cells: str) -> None:
    print()
    row(*cells)
    row(*["---"] * len(cells))


def shares(played: Played) -> tuple[str, ...]:
    return f"{played.policy:.0%}", f"{played.simulators:.0%}", f"{played.driver:.0%}"


def nodes_and_replicas(options: argparse.Namespace) -> dict[int, dict[int, Played]]:
    """By replicas, by nodes; nodes beyond four times what the replicas could serve are left out where defaults are played."""
    played: dict[int, dict[int, Played]] = {}
    head(
        "replicas", "nodes", "chunks/s", "of the slower side", "policy", "simulators", "conductor", "rows a call", "updates old"
    )
    for replicas in options.replicas or REPLICAS:
        for nodes in options.nodes or [count for count in NODES if count <= 32 * replicas]:
            spec = cluster(options, nodes=nodes, replicas=replicas)
            one = played.setdefault(replicas, {})[nodes] = measure(spec)
            bound = min(nodes * options.node_chunks_per_s, replicas * best_rate(spec.replicas))
            old = f"{one.staleness:.1f}"
            row(
                replicas,
                nodes,
                f"{one.chunks_per_s:.0f}",
                f"{one.chunks_per_s / bound:.2f}",
                *shares(one),
                f"{one.rows_per_call:.0f}",
                old,
            )
    return played


def best_rate(replicas: Replicas) -> float:
    """Chunks per second of one replica whose calls are full."""
    return replicas.max_rows / (replicas.call_s + replicas.max_rows * replicas.row_s)


def divided_among_ranks(options: argparse.Namespace) -> None:
    """256 nodes and 16 replicas, driven by one conductor and by several; and by one that loses no time between calls."""
    head("256 nodes, 16 replicas, ranks", "chunks/s", "policy", "simulators", "conductor", "rows a call")
    for ranks in (1, 2, 4, 8):
        one = measure(cluster(options, nodes=256, replicas=16, ranks=ranks), ranks=ranks)
        row(ranks, f"{one.chunks_per_s:.0f}", *shares(one), f"{one.rows_per_call:.0f}")
    spec = cluster(options, nodes=256, replicas=16)
    one = measure(replace(spec, driver=replace(spec.driver, gather_s=0.0, number_s=0.0)))
    row("1, rows prepared in no time", f"{one.chunks_per_s:.0f}", *shares(one), f"{one.rows_per_call:.0f}")


def ends_of_iterations(options: argparse.Namespace) -> None:
    """What stragglers, pushes and updates cost: 48 nodes, 4 replicas, updates as fast as ten GPUs at 74 chunks/s."""
    spec = cluster(options, nodes=48, replicas=4)
    update = Training(row_s=1 / 740)
    cases = {
        "nothing": spec,
        "stragglers (`rollout.deterministic`: no look-ahead)": replace(spec, rollout=replace(spec.rollout, deterministic=True)),
        "a push of 0.5 s (adapters)": replace(spec, training=Training(push_s=0.5)),
        "a push of 5 s (all weights)": replace(spec, training=Training(push_s=5.0)),
        "an update of 740 chunks/s, a push of 0.5 s": replace(spec, training=replace(update, push_s=0.5)),
        "the same, `rollout.max_staleness` 1": replace(
            spec, rollout=replace(spec.rollout, max_staleness=1), training=replace(update, push_s=0.5)
        ),
        "groups without signal: half": replace(spec, training=Training(signal=0.5)),
    }
    head("48 nodes, 4 replicas, at the end of each iteration", "chunks/s", "policy", "simulators", "conductor", "updates old")
    for name, case in cases.items():
        one = measure(case)
        row(name, f"{one.chunks_per_s:.0f}", *shares(one), f"{one.staleness:.1f}")


def draw(played: dict[int, dict[int, Played]], options: argparse.Namespace, path: Path) -> None:
    """The first table as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    rate = best_rate(Replicas(call_s=options.call_ms / 1000, row_s=options.row_ms / 1000))
    for replicas, by_nodes in played.items():
        nodes = list(by_nodes)
        (line,) = axes.plot(nodes, [by_nodes[count].chunks_per_s for count in nodes], "o-", label=f"{replicas}")
        bound = [min(count * options.node_chunks_per_s, replicas * rate) for count in nodes]
        axes.plot(nodes, bound, "--", color=line.get_color(), linewidth=0.9)
    axes.set(xscale="log", yscale="log", xlabel="simulator nodes", ylabel="chunks per second")
    axes.set_xticks(NODES, [str(count) for count in NODES])
    rates = [25 * 2**power for power in range(8)]
    axes.set_yticks(rates, [f"{rate:,}" for rate in rates])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="replicas (dashed: the slower side alone)", frameon=False)
    figure.savefig(path)


def validate(seconds: float) -> None:
    """The same small cluster, played by threads and on paper."""
    head("what limits", "played, chunks/s", "on paper", "ratio")
    for case, real, paper in compare(seconds):
        row(case.name, f"{real:.0f}", f"{paper:.0f}", f"{paper / real:.2f}")


def main(arguments: Iterable[str] | None = None) -> None:
    """Print the tables asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pipeline.simulate_cluster",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--nodes", type=int, nargs="+", help="simulator nodes (default: 1 to 512, and the other tables)")
    parser.add_argument("--replicas", type=int, nargs="+", help="policy replicas (default: 1 to 16)")
    parser.add_argument("--workers-per-node", type=int, default=2)
    parser.add_argument("--envs-per-worker", type=int, default=8)
    parser.add_argument("--node-chunks-per-s", type=float, default=22.2, help="of a node whose slots all play (default: 22.2)")
    parser.add_argument("--call-ms", type=float, default=4.0, help="a replica's call, beside its rows (default: 4)")
    parser.add_argument("--row-ms", type=float, default=5.25, help="a row of a replica's call (default: 5.25)")
    parser.add_argument("--gbit-per-s", type=float, default=25.0, help="network of the conductor's machine (default: 25)")
    parser.add_argument("--figure", type=Path, help="write the first table as a picture, too")
    parser.add_argument("--validate", action="store_true", help="compare with real runs of threads that sleep, instead")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each real run (default: 20)")
    options = parser.parse_args(None if arguments is None else list(arguments))
    counts = [*(options.nodes or ()), *(options.replicas or ()), options.workers_per_node, options.envs_per_worker]
    if min(*counts, 1) < 1 or min(options.node_chunks_per_s, options.row_ms, options.gbit_per_s, options.seconds) <= 0:
        parser.error("numbers must be positive")
    if options.validate:
        validate(options.seconds)
        return
    played = nodes_and_replicas(options)
    if options.figure is not None:
        draw(played, options, options.figure)
    if not options.nodes and not options.replicas:
        divided_among_ranks(options)
        ends_of_iterations(options)


if __name__ == "__main__":
    main()
