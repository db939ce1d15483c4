"""A pilot of o9: python exercises/solutions/o9.py writes exercises/solutions/o9.json, in three minutes."""

import json

import torch


def main(n_seeds=3, n_updates=3000, n=200):
    import plane  # the pilots' shared lines; it finds what follows
    from o9 import RATES, from_noise, gap_to_data, near_a_centre, network_energy

    parts = ("networks", "buffers", "buffer", "noise", "gap")
    answer = {"seeds": list(range(n_seeds))} | {part: {} for part in parts}
    for rate in RATES:
        torch.manual_seed(0)
        buffer, at = 3 * torch.randn(n_seeds, 1000, 2), [0]

        def loss(parameters, buffer=buffer, at=at, rate=float(rate)):
            block = slice(at[0], at[0] + n)
            at[0] = (at[0] + n) % 1000
            fresh = torch.rand(n_seeds, n, 1) < rate
            chains = torch.where(fresh, 3 * torch.randn(n_seeds, n, 2), buffer[:, block])
            buffer[:, block] = chains = plane.langevin(parameters, chains, 10)
            data = plane.eight_gaussians(n_seeds, n)
            return (plane.energies(parameters, data) - plane.energies(parameters, chains)).mean(1).sum()

        answer["networks"][rate] = plane.as_json(plane.train(plane.fresh(n_seeds, 16), loss, n_updates))
        points = (100 * buffer[:, torch.randperm(1000)[:200]].double()).round() / 100
        each, stream = [network_energy(network) for network in answer["networks"][rate]], torch.Generator().manual_seed(1)
        answer["buffers"][rate] = points.tolist()
        answer["buffer"][rate] = [round(near_a_centre(one).item(), 4) for one in points]
        answer["noise"][rate] = [round(share, 4) for share in from_noise(answer["networks"][rate], stream).tolist()]
        answer["gap"][rate] = [round(gap_to_data(energy).item(), 4) for energy in each]
        print(rate, *(answer[key][rate] for key in ("buffer", "noise", "gap")))
    mean = lambda key: lambda rate: sum(answer[key][rate])
    answer["best"] = {key: max(RATES, key=mean(key)) for key in ("buffer", "noise")} | {"gap": min(RATES, key=mean("gap"))}
    (plane.HERE / "o9.json").write_text(json.dumps(answer), encoding="utf-8")
    print(answer["best"])


if __name__ == "__main__":
    main()


def other(answer, key):
    """A rate that is not the best."""
    answer["best"][key] = next(rate for rate in ("0", "1") if rate != answer["best"][key])


MUTANTS = [
    ("flat", lambda a: a["noise"].update({rate: [0.5] * 3 for rate in a["noise"]}), "noise, r = "),
    ("reversed", lambda a: a["gap"].update({"0": a["gap"]["1"], "1": a["gap"]["0"]}), "gap, r = 0"),
    ("one seed", lambda a: a.update(seeds=[0]), "different seeds"),
    ("one seed, three times", lambda a: a["networks"]["1"].__setitem__(1, a["networks"]["1"][0]), "two seeds"),
    ("invented", lambda a: a["buffer"]["0.1"].__setitem__(0, 0.999), "buffer, r = 0.1: the table says"),
    ("wrong claim", lambda a: other(a, "gap"), "best gap: you claim"),
    ("wrong claim about the buffer", lambda a: other(a, "buffer"), "best buffer: you claim"),
]
