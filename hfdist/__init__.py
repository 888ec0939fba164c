"""Hessian-free and Gauss-Newton training in JAX, on one device or many."""

from hfdist import losses, spectrum
from hfdist.cluster.processes import joined
from hfdist.eigenpairs import Pairs
from hfdist.errors import UsageError
from hfdist.fitting.descent import Ending
from hfdist.fitting.fit import fit
from hfdist.fitting.result import Fit
from hfdist.jacobian import with_jacobian
from hfdist.matrix import Matrix, curvature
from hfdist.methods.adam import Adam
from hfdist.methods.hessian_free import HessianFree
from hfdist.methods.method import Info, Method
from hfdist.methods.momentum import Momentum
from hfdist.methods.newton import Newton
from hfdist.methods.sgd import SGD
from hfdist.outcome import Refusal
from hfdist.parallel import make_mesh
from hfdist.preconditioner import Probes
from hfdist.problem import KernelFirst, Problem
from hfdist.quadratics import Quadratic, quadratic
from hfdist.solvers.cg import CG
from hfdist.solvers.dense import Dense
from hfdist.solvers.solution import Reason, Solution
from hfdist.solvers.system import System

__all__ = [
    "CG",
    "SGD",
    "Adam",
    "Dense",
    "Ending",
    "Fit",
    "HessianFree",
    "Info",
    "KernelFirst",
    "Matrix",
    "Method",
    "Momentum",
    "Newton",
    "Pairs",
    "Probes",
    "Problem",
    "Quadratic",
    "Reason",
    "Refusal",
    "Solution",
    "System",
    "UsageError",
    "curvature",
    "fit",
    "joined",
    "losses",
    "make_mesh",
    "quadratic",
    "spectrum",
    "with_jacobian",
]
