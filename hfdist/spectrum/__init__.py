"""The eigenvalues of a curvature matrix: all of them, or their distribution.

C = hfdist.curvature(problem, params, batch)
found = hfdist.spectrum.spectrum(C)
found.largest, found.smallest, found.negative_share, found.moment(1)
"""

from hfdist.spectrum.eigenvalues import Spectrum, check_memory, spectrum

__all__ = ["Spectrum", "check_memory", "spectrum"]
