"""How λ in (C + λI) d = -g moves from step to step, one rule a file.

A rule is a function (λ, outcome) -> λ of what the step made with λ did.
"""
