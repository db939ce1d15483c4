"""Solution of ex04_2."""

import torch


def cd_gradient(W, b, c, v_data, v_model):
    """(dW, db, dc), to climb: the data's averages minus the model's."""

    def phase(v):
        h = torch.sigmoid(v @ W + c)
        return v.T @ h / len(v), v.mean(0), h.mean(0)

    return tuple(data - model for data, model in zip(phase(v_data), phase(v_model), strict=True))


MUTANTS = [
    ("data - model for", "model - data for", "gradient of the loss"),
    ("v.T @ h / len(v), v.mean(0), h.mean(0)", "v.T @ h, v.sum(0), h.sum(0)", "The rows are summed"),
    ("v.T @ h / len(v)", "h.T @ v / len(v)", "transposed"),
    ("data - model for", "data for", "positive phase alone"),
    ("data - model for", "data + model for", "The phases are added"),
    ("torch.sigmoid(v @ W + c)", "(torch.sigmoid(v @ W + c) > 0.5).double()", "thresholded"),
    ("torch.sigmoid(v @ W + c)", "torch.bernoulli(torch.sigmoid(v @ W + c))", "draws random numbers"),
    ("v.T @ h / len(v)", "v.T @ h / len(v_data)", "number of *data* rows"),
    ("v @ W + c", "v @ W", "hidden biases c are missing"),
]
