"""Hessian-free and Gauss-Newton training in JAX, on one device or many."""

from hfdist import losses
from hfdist.methods.hessian_free import HessianFree
from hfdist.methods.method import Info, Method
from hfdist.methods.newton import Newton
from hfdist.methods.sgd import SGD
from hfdist.parallel import make_mesh
from hfdist.problem import Problem
from hfdist.processes import joined
from hfdist.solvers.cg import CG
from hfdist.solvers.dense import Dense

__all__ = [
    "CG",
    "SGD",
    "Dense",
    "HessianFree",
    "Info",
    "Method",
    "Newton",
    "Problem",
    "joined",
    "losses",
    "make_mesh",
]
