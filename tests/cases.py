"""Small problems with a dense float64 truth that uses none of hfdist's curvature."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import hfdist
from hfdist import CG, SGD, HessianFree, Newton, losses
from hfdist.models.mlp import MLP
from hfdist.models.model import functional
from hfdist.parallel import collectives

LM: Any = "levenberg_marquardt"
METHODS = {
    "sgd": SGD(learning_rate=0.1),
    "newton": Newton(damping=5.0),
    "newton_gauss_newton_lm": Newton(
        damping=5.0, curvature="gauss_newton", damping_rule=LM
    ),
    "hf_gauss_newton": HessianFree(damping=1.0),
    "hf_hessian": HessianFree(damping=5.0, curvature="hessian"),
    "hf_finite_difference": HessianFree(damping=5.0, curvature="finite_difference"),
    "hf_layerwise": HessianFree(damping=1.0, curvature="layerwise_gauss_newton"),
    "hf_warm_lm": HessianFree(damping=1.0, damping_rule=LM, warm_start=0.95),
    "hf_kronecker": HessianFree(
        damping=1.0,
        preconditioner="kronecker",
        step_rule="two_term",
        learning_rate=1.0,
        cg=CG(max_steps=1),
    ),
    "hf_untuned": HessianFree(),
    "hf_nystrom": HessianFree(
        damping=1.0, preconditioner="nystrom", probes=hfdist.Probes(rank=3)
    ),
    "adam": hfdist.Adam(learning_rate=0.1, weight_decay=0.01),
}

ONE_DEVICE = collectives(None)
INPUTS, HIDDEN, OUTPUTS = 5, 4, 3
ACTIVATIONS = {"tanh": jnp.tanh, "softplus": jax.nn.softplus, "relu": jax.nn.relu}


def log_cosh(z_BC, batch):
    """A convex loss that hfdist does not know."""
    return jnp.sum(jnp.log(jnp.cosh(z_BC - batch["targets"])), -1)


LOSSES = {
    "softmax_cross_entropy": losses.softmax_cross_entropy,
    "sigmoid_cross_entropy": losses.sigmoid_cross_entropy,
    "squared_error": losses.squared_error,
    "log_cosh": log_cosh,
}


def loss_and_output_hessian(name: str, z_C, t_C):
    """The closed forms for one example, in numpy."""
    if name == "softmax_cross_entropy":
        p_C = np.exp(z_C - z_C.max())
        p_C /= p_C.sum()
        return -t_C @ np.log(p_C), np.diag(p_C) - np.outer(p_C, p_C)
    if name == "sigmoid_cross_entropy":
        s_C = 1 / (1 + np.exp(-z_C))
        loss = -t_C @ np.log(s_C) - (1 - t_C) @ np.log(1 - s_C)
        return loss, np.diag(s_C * (1 - s_C))
    if name == "squared_error":
        return np.sum((z_C - t_C) ** 2), 2 * np.eye(len(z_C))
    difference_C = z_C - t_C
    return np.sum(np.log(np.cosh(difference_C))), np.diag(np.cosh(difference_C) ** -2.0)


@dataclass(frozen=True)
class Case:
    """A two-layer network on random data, with or without weights."""

    loss: str
    activation: str = "tanh"
    examples: int = 7
    weighted: bool = False

    def __str__(self):
        weights = "weighted" if self.weighted else "unweighted"
        return f"{self.loss}-{self.activation}-{self.examples}-{weights}"

    def predict(self, params, batch):
        hidden_BH = batch["inputs"] @ params["first"]["kernel"]
        hidden_BH = ACTIVATIONS[self.activation](hidden_BH + params["first"]["bias"])
        return hidden_BH @ params["second"]["kernel"] + params["second"]["bias"]

    @property
    def problem(self) -> hfdist.Problem:
        return hfdist.Problem(self.predict, LOSSES[self.loss])

    @property
    def params(self) -> dict[str, Any]:
        rng = np.random.default_rng(1)
        shapes = {
            "first": {"kernel": (INPUTS, HIDDEN), "bias": (HIDDEN,)},
            "second": {"kernel": (HIDDEN, OUTPUTS), "bias": (OUTPUTS,)},
        }
        return jax.tree.map(
            lambda shape: jnp.asarray(rng.normal(size=shape)),
            shapes,
            is_leaf=lambda node: isinstance(node, tuple),
        )

    @property
    def batch(self) -> dict[str, Any]:
        rng = np.random.default_rng(2)
        batch = {"inputs": jnp.asarray(rng.normal(size=(self.examples, INPUTS)))}
        if self.loss == "softmax_cross_entropy":
            batch["labels"] = jnp.asarray(rng.integers(0, OUTPUTS, self.examples))
        else:
            batch["targets"] = jnp.asarray(rng.uniform(size=(self.examples, OUTPUTS)))
        if self.weighted:
            weights_B = rng.uniform(0.2, 3, self.examples)
            weights_B[-1] = 0  # padding
            batch["weights"] = jnp.asarray(weights_B)
        return batch

    def weights(self) -> np.ndarray:
        """wᵢ / Σ wᵢ."""
        weights_B = np.asarray(self.batch.get("weights", np.ones(self.examples)))
        return weights_B / weights_B.sum()

    def targets(self) -> np.ndarray:
        if "targets" in self.batch:
            return np.asarray(self.batch["targets"])
        return np.eye(OUTPUTS)[np.asarray(self.batch["labels"])]

    def dense_value(self) -> float:
        z_BC = np.asarray(self.predict(self.params, self.batch))
        pairs = zip(z_BC, self.targets(), strict=True)
        losses_B = [loss_and_output_hessian(self.loss, z, t)[0] for z, t in pairs]
        return float(self.weights() @ losses_B)

    def _scalar(self, flat_N):
        """The mean loss from closed forms that JAX can differentiate."""
        z_BC = self.predict(ravel_pytree(self.params)[1](flat_N), self.batch)
        t_BC = self.targets()
        losses_BC = {
            "softmax_cross_entropy": -t_BC * jax.nn.log_softmax(z_BC),
            "sigmoid_cross_entropy": jax.nn.softplus(z_BC) - t_BC * z_BC,
            "squared_error": (z_BC - t_BC) ** 2,
            "log_cosh": jnp.log(jnp.cosh(z_BC - t_BC)),
        }[self.loss]
        return self.weights() @ losses_BC.sum(-1)

    def dense_gradient(self) -> np.ndarray:
        return np.asarray(jax.grad(self._scalar)(ravel_pytree(self.params)[0]))

    def dense_hessian(self) -> np.ndarray:
        return np.asarray(jax.hessian(self._scalar)(ravel_pytree(self.params)[0]))

    def dense_gauss_newton(self) -> np.ndarray:
        """Σ wᵢ Jᵢᵀ Hᵢ Jᵢ / Σ wᵢ, example by example in numpy."""
        flat_N, unravel = ravel_pytree(self.params)
        j_BCN = np.asarray(
            jax.jacobian(lambda w: self.predict(unravel(w), self.batch))(flat_N)
        )
        z_BC = np.asarray(self.predict(self.params, self.batch))
        total_NN = np.zeros((flat_N.size, flat_N.size))
        rows = zip(self.weights(), j_BCN, z_BC, self.targets(), strict=True)
        for weight, j_CN, z_C, t_C in rows:
            _, h_CC = loss_and_output_hessian(self.loss, z_C, t_C)
            total_NN += weight * j_CN.T @ h_CC @ j_CN
        return total_NN

    def dense_layerwise(self) -> np.ndarray:
        """G without the blocks between the two layers."""
        sizes = [ravel_pytree(layer)[0].size for layer in self.params.values()]
        layers_N = np.repeat(np.arange(2), sizes)
        same_NN = layers_N[:, None] == layers_N
        return np.where(same_NN, self.dense_gauss_newton(), 0)


CASES = [
    Case(loss, activation, examples, weighted)
    for loss in LOSSES
    for activation in ACTIVATIONS
    for examples, weighted in ((7, False), (8, True))
]


def network(inputs, outputs, examples, seed):
    """(problem, params, batch) of a library's MLP with 6 units, in float64."""
    predict, params = functional(MLP(hidden=(6,)).build(inputs, outputs, 0))
    params = jax.tree.map(lambda a: a.astype(jnp.float64), params)
    rng = np.random.default_rng(seed)
    batch = {
        "inputs": jnp.asarray(rng.normal(size=(examples, inputs))),
        "labels": jnp.asarray(rng.integers(0, outputs, examples)),
    }
    return hfdist.Problem(predict, losses.softmax_cross_entropy), params, batch


def relative_error(actual, expected) -> float:
    """‖actual - expected‖ / ‖expected‖ over all leaves."""
    actual_N = np.asarray(ravel_pytree(actual)[0])
    expected_N = np.asarray(ravel_pytree(expected)[0])
    return float(np.linalg.norm(actual_N - expected_N) / np.linalg.norm(expected_N))


def loop(optimizer, params, batch, steps=3):
    """The line that every optimiser goes through: the params after it, all infos."""
    update = jax.jit(lambda s, p: optimizer.update(None, s, p, batch=batch))
    state, infos = optimizer.init(params), []
    for _ in range(steps):
        updates, state = update(state, params)
        params = optax.apply_updates(params, updates)
        infos.append(state.info)
    return params, infos
