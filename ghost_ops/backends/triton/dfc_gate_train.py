"""``dfc_gate_train``: the passes of docs/gradients.md, section 6, with the pooled map in scratch memory."""

from __future__ import annotations

import torch

from ...activations import NONE, OF_GATES
from ..layout import kept_dtype
from . import checks, launch
from .cheap_concat_train import batch_norm_of, new_statistics
from .epilogue import Epilogue
from .joins import Joins
from .launch_cache import cached_launches
from .lines import Line, convolve_line
from .lines_gradients import line_gradients
from .normalise import norm_gradient_sums
from .pooling import average_pool, average_pool_gradient
from .product_gradients import product_gradients
from .products import primary_product
from .sums import Totals


def _norm(gamma, beta, eps, mean=None, var=None, act=NONE) -> Epilogue:
    return Epilogue(None, act, 0.0, None, gamma, beta, mean, var, eps)


def _along_rows(weight: torch.Tensor) -> torch.Tensor:
    """A filter of one column as one of a row."""
    return weight.transpose(2, 3)


@cached_launches
def dfc_gate_train(
    x, weight, gamma, beta, row_weight, row_gamma, row_beta, column_weight, column_gamma, column_beta, gate, eps,
    row_eps, column_eps,
):  # fmt: skip
    """The gate, mean and variance of the three products, and the first of them, N x h x w x M."""
    norms = _norm(gamma, beta, eps), _norm(row_gamma, row_beta, row_eps), _norm(column_gamma, column_beta, column_eps)
    checks.expect_gate(x, weight, row_weight, column_weight, norms)
    m, (n, _, *sides), joins = weight.shape[0], x.shape, Joins(x.device)
    sides = sides[0] // 2, sides[1] // 2
    product = launch.empty((n, *sides, m), kept_dtype(x), x.device)
    z, out = product.permute(0, 3, 1, 2), launch.new_map(x, m, sides)
    z_rows = launch.scratch(out, m)
    made = [new_statistics(x, m) for _ in norms]
    given = [{"joins": joins, "norm": batch_norm_of(norm), "vectors": to} for norm, to in zip(norms, made)]
    primary_product(average_pool(x), weight, to=z, **given[0])
    convolve_line(z, Line(row_weight, False, made[0].applied(norms[0])), to=z_rows, **given[1])
    columns = Line(_along_rows(column_weight), True, made[1].applied(norms[1]))
    convolve_line(z_rows, columns, **given[2])
    last = made[2].applied(norms[2])._replace(act=OF_GATES[gate])
    convolve_line(z_rows, columns._replace(after=last), to=out)
    return out, *(t for vectors in made for t in (vectors.mean, vectors.var)), product


@cached_launches
def dfc_gate_train_backward(
    grad_out, x, weight, gamma, beta, row_weight, row_gamma, row_beta, column_weight, column_gamma, column_beta, mean,
    var, row_mean, row_var, column_mean, column_var, product, gate, eps, row_eps, column_eps,
):  # fmt: skip
    """Gradients of x, and of weight, gamma and beta of each layer. Without ``product`` it is computed again."""
    norm = _norm(gamma, beta, eps, mean, var)
    of_rows = _norm(row_gamma, row_beta, row_eps, row_mean, row_var)
    of_columns = _norm(column_gamma, column_beta, column_eps, column_mean, column_var, OF_GATES[gate])
    checks.expect_gate(x, weight, row_weight, column_weight, (norm, of_rows, of_columns))
    m, (n, _, height, width) = weight.shape[0], x.shape
    checks.expect("grad_out", grad_out, (n, m, height // 2, width // 2), x)
    checks.expect("product", product, (n, height // 2, width // 2, m), x)
    pooled, joins, totals = average_pool(x), Joins(x.device), Totals()
    if product is None:
        z = launch.scratch(pooled, m)
        primary_product(pooled, weight, to=z)
    else:
        z = launch.vector(product).permute(0, 3, 1, 2)
    z_rows, z_columns = (launch.scratch(pooled, m) for _ in range(2))
    rows, columns = Line(row_weight, False, norm), Line(_along_rows(column_weight), True, of_rows)
    convolve_line(z, rows, to=z_rows)
    convolve_line(z_rows, columns, to=z_columns)
    coefficients, column_found = norm_gradient_sums(grad_out, z_columns, of_columns, joins=joins, own=of_columns)
    rows, columns = rows._replace(after=of_rows), columns._replace(after=of_columns)
    grad, grad_column, coefficients, row_found = line_gradients(
        grad_out, z_columns, columns, coefficients, z_rows, joins=joins, totals=totals
    )
    grad, grad_row, coefficients, found = line_gradients(
        grad, z_rows, rows, coefficients, z, joins=joins, totals=totals
    )  # fmt: skip
    grad, grad_weight = product_gradients(grad, z, pooled, weight, coefficients, totals=totals)
    totals.start()
    return (
        average_pool_gradient(grad, x), grad_weight, found.gamma, found.beta, grad_row, row_found.gamma, row_found.beta,
        grad_column.view(column_weight.shape), column_found.gamma, column_found.beta,
    )  # fmt: skip
