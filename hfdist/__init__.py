"""Hessian-free and Gauss-Newton training in JAX, on one device or many."""

from hfdist import losses, spectrum
from hfdist.cluster.processes import joined
from hfdist.curvature import Quadratic, quadratic
from hfdist.damping import Refusal
from hfdist.eigenpairs import Pairs
from hfdist.errors import UsageError
from hfdist.matrix import Matrix, curvature
from hfdist.methods.hessian_free import HessianFree
from hfdist.methods.method import Info, Method
from hfdist.methods.newton import Newton
from hfdist.methods.sgd import SGD
from hfdist.parallel import make_mesh
from hfdist.problem import KernelFirst, Problem
from hfdist.solvers.cg import CG
from hfdist.solvers.dense import Dense
from hfdist.solvers.solution import Solution

__all__ = [
    "CG",
    "SGD",
    "Dense",
    "HessianFree",
    "Info",
    "KernelFirst",
    "Matrix",
    "Method",
    "Newton",
    "Pairs",
    "Problem",
    "Quadratic",
    "Refusal",
    "Solution",
    "UsageError",
    "curvature",
    "joined",
    "losses",
    "make_mesh",
    "quadratic",
    "spectrum",
]
