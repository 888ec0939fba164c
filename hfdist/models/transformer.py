"""A decoder-only transformer over characters or other tokens, as nanoGPT's.

Shapes: B sequences of T tokens, N = B T; S: the T attended to; V vocabulary, D width,
F = 4 D, H heads, K = D / H.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from hfdist.checks import Count
from hfdist.errors import UsageError
from hfdist.models.model import Model

STD = 0.02  # of the initial params (GPT-2)


@dataclass(frozen=True, kw_only=True)
class Transformer(Model):
    """Pre-LayerNorm blocks of causal attention and GELU layers, without biases.

    Positions are learnt. Params are normal with deviation 0.02, those of the layers
    that end a residual branch divided by √(2 layers) (Radford et al. 2019; Karpathy's
    nanoGPT, whose CPU size is the default: 0.8 million params).
    """

    layers: Count = 4
    """Blocks, each of attention and a GELU layer of 4 times the width."""
    heads: Count = 4
    """Attention heads of a block, which divide the width."""
    width: Count = 128
    """Numbers that stand for a token between the blocks."""
    tied_embeddings: bool = True
    """Take the tokens' embeddings for the output layer's kernel, too."""
    remat: bool = False
    """Keep of each block its inputs alone, and compute it again in products: the memory
    of one block, for a forward pass more with J and with its transpose."""

    def __post_init__(self):
        super().__post_init__()
        if self.width % self.heads:
            raise UsageError(
                f"Transformer.width is {self.width}, which {self.heads} heads cannot "
                f"share evenly: use a multiple of {self.heads}, or other heads"
            )

    def build(self, inputs, outputs, seed):
        """tokens (B, T) of `inputs` at most to logits (B, T, V), V being `outputs`."""
        return Decoder(self, inputs, outputs, nnx.Rngs(seed))


class Decoder(nnx.Module):
    """tokens (B, T) -> logits (B, T, V); those at t are of the tokens 0 … t alone."""

    def __init__(
        self, settings: Transformer, context: int, vocabulary: int, rngs: nnx.Rngs
    ):
        self.tokens_VD = _embeddings(vocabulary, settings.width, rngs)
        self.positions_TD = _embeddings(context, settings.width, rngs)
        self.blocks = nnx.List([Block(settings, rngs) for _ in range(settings.layers)])
        self.remat = settings.remat
        self.norm = _norm(settings.width, rngs)
        tied = settings.tied_embeddings  # None: the embeddings are the output layer
        self.head = None if tied else _linear(settings.width, vocabulary, STD, rngs)

    def __call__(self, tokens_BT):
        self._check(tokens_BT)
        embeddings_VD = self.tokens_VD[...]
        positions_TD = self.positions_TD[: tokens_BT.shape[1]]
        x_BTD = jnp.take(embeddings_VD, tokens_BT, axis=0) + positions_TD
        # One row a token: on a CPU, XLA differentiates such products twice as fast.
        x_ND = x_BTD.reshape(tokens_BT.size, -1)
        apply = _again if self.remat else Block.__call__
        for block in self.blocks:
            x_ND = apply(block, x_ND, tokens_BT.shape)
        x_ND = self.norm(x_ND)
        z_NV = x_ND @ embeddings_VD.T if self.head is None else self.head(x_ND)
        return z_NV.reshape(*tokens_BT.shape, -1)

    def _check(self, tokens_BT) -> None:
        context = len(self.positions_TD)
        whole = jnp.issubdtype(tokens_BT.dtype, jnp.integer)
        if not whole or tokens_BT.ndim != 2 or tokens_BT.shape[1] > context:
            raise UsageError(
                f"a Transformer reads tokens, whole numbers (B, T) with T up to "
                f"{context}, but was given {tokens_BT.dtype} {tokens_BT.shape}: train "
                f"it on hfdist.tasks.text.Text or hfdist.tasks.tokens.Tokens, or "
                f"choose another model"
            )


class Block(nnx.Module):
    """x ← x + attention(norm(x)), then x ← x + GELU layer(norm(x)), rows (B T, D)."""

    def __init__(self, settings: Transformer, rngs: nnx.Rngs):
        width, ends = settings.width, STD / math.sqrt(2 * settings.layers)
        self.heads = settings.heads
        self.attention_norm = _norm(width, rngs)
        self.query_key_value = _linear(width, 3 * width, STD, rngs)
        self.attention_out = _linear(width, width, ends, rngs)
        self.hidden_norm = _norm(width, rngs)
        self.hidden = _linear(width, 4 * width, STD, rngs)
        self.hidden_out = _linear(4 * width, width, ends, rngs)

    def __call__(self, x_ND, batch_and_length):
        parts_N3D = self.query_key_value(self.attention_norm(x_ND))
        parts = parts_N3D.reshape(*batch_and_length, 3, self.heads, -1)
        mixed_BTHK = causal_attention(*jnp.moveaxis(parts, 2, 0))
        x_ND += self.attention_out(mixed_BTHK.reshape(x_ND.shape))
        hidden_NF = self.hidden(self.hidden_norm(x_ND))
        return x_ND + self.hidden_out(jax.nn.gelu(hidden_NF, approximate=False))


def _again(block: Block, x_ND: Array, batch_and_length: tuple[int, int]) -> Array:
    """block(x), of which derivatives keep x, and compute the rest again."""
    graphdef, params = nnx.split(block)

    def pure(params, x_ND):
        return nnx.merge(graphdef, params)(x_ND, batch_and_length)

    return jax.checkpoint(pure)(params, x_ND)


def causal_attention(q_BTHK: Array, k_BTHK: Array, v_BTHK: Array) -> Array:
    """softmax(q kᵀ / √K) v over the positions up to each one's own, (B, T, H, K).

    In plain operations, which have the forward derivatives that products are made of;
    fused kernels have not.
    """
    q, k, v = (jnp.swapaxes(a, 1, 2) for a in (q_BTHK, k_BTHK, v_BTHK))
    length, size = q.shape[-2:]
    scores_BHTS = q @ jnp.swapaxes(k, -1, -2) / math.sqrt(size)
    seen_TS = jnp.tri(length, dtype=bool)
    weights_BHTS = jax.nn.softmax(jnp.where(seen_TS, scores_BHTS, -jnp.inf))
    return jnp.swapaxes(weights_BHTS @ v, 1, 2)


def _embeddings(count: int, width: int, rngs: nnx.Rngs) -> nnx.Param:
    # float32 as all layers' own are: the seed's params are the same in float64.
    init = nnx.initializers.normal(STD)
    return nnx.Param(init(rngs.params(), (count, width), jnp.float32))


def _linear(inputs: int, outputs: int, std: float, rngs: nnx.Rngs) -> nnx.Linear:
    init = nnx.initializers.normal(std)
    return nnx.Linear(inputs, outputs, use_bias=False, kernel_init=init, rngs=rngs)


def _norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(width, epsilon=1e-5, use_bias=False, rngs=rngs)
