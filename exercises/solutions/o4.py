"""A pilot of o4: python exercises/solutions/o4.py writes exercises/solutions/o4.json, in two minutes."""

import json
import math

import torch


def main(n_seeds=3, n_updates=3000, n=256):
    import plane  # the pilots' shared lines; it finds what follows
    from o4 import TRAINERS, WEIGHTS, gap_to_data, network_energy, weight_error

    data = lambda: plane.eight_gaussians(n_seeds, n, WEIGHTS.float())
    chains = [3 * torch.randn(n_seeds, n, 2)]

    def nce(parameters):  # the constant is the last of the parameters, and no part of E
        *network, log_z = parameters
        noise = 16 * torch.rand(n_seeds, 4 * n, 2) - 8
        logit = lambda x: -plane.energies(network, x) - log_z + math.log(256) - math.log(4)
        loss = torch.nn.functional.softplus
        return (loss(-logit(data())).mean(1) + 4 * loss(logit(noise)).mean(1)).sum()

    def denoising(parameters, sigma=0.3):
        noise = torch.randn(n_seeds, n, 2)
        x = (data() + sigma * noise).requires_grad_()
        (slope,) = torch.autograd.grad(plane.energies(parameters, x).sum(), x, create_graph=True)
        return 0.5 * (sigma * slope - noise).square().sum(2).mean(1).sum()

    def persistent(parameters):
        chains[0] = plane.langevin(parameters, chains[0], 10)
        return (plane.energies(parameters, data()) - plane.energies(parameters, chains[0])).mean(1).sum()

    losses = {"grid": plane.likelihood_loss(data), "nce": nce, "denoising": denoising, "persistent": persistent}
    answer = {"seeds": list(range(n_seeds)), "networks": {}, "gap": {}, "weight_error": {}}
    for trainer in TRAINERS:
        torch.manual_seed(0)
        constant = [torch.zeros(n_seeds, 1, requires_grad=True)] if trainer == "nce" else []
        parameters = plane.train([*plane.fresh(n_seeds, 16), *constant], losses[trainer], n_updates)
        answer["networks"][trainer] = plane.as_json(parameters[:5])
        each = [network_energy(network) for network in answer["networks"][trainer]]
        answer["gap"][trainer] = [round(gap_to_data(energy, WEIGHTS).item(), 4) for energy in each]
        answer["weight_error"][trainer] = [round(weight_error(energy).item(), 4) for energy in each]
        print(trainer, answer["gap"][trainer], answer["weight_error"][trainer])
    mean = lambda key: lambda trainer: sum(answer[key][trainer])
    answer["best"], answer["blind"] = min(TRAINERS[1:], key=mean("gap")), max(TRAINERS, key=mean("weight_error"))
    (plane.HERE / "o4.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()

MUTANTS = [
    ("flat", lambda a: a["gap"].update({key: [0.1] * 3 for key in a["gap"]}), "gap: grid's is up to"),
    ("reversed", lambda a: a["networks"].update(grid=a["networks"]["nce"], nce=a["networks"]["grid"]), "grid's is"),
    ("one seed", lambda a: a.update(seeds=[0]), "different seeds"),
    ("one seed, three times", lambda a: a["networks"]["nce"].__setitem__(1, a["networks"]["nce"][0]), "two seeds"),
    ("invented", lambda a: a["weight_error"]["nce"].__setitem__(0, 0.5), "weight_error: nce's is"),
    ("grid untrained", lambda a: [a[key].update(grid=a[key]["persistent"]) for key in ("networks", "gap", "weight_error")],
     "beats the exact gradient"),
    ("wrong claim", lambda a: a.update(blind="grid"), "blind: you claim"),
    ("wrong best", lambda a: a.update(best="persistent" if a["best"] != "persistent" else "nce"), "best: you claim"),
]  # fmt: skip
