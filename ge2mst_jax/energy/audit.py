"""The audit: every product of a deployed network with the kind of both operands."""

import dataclasses

from ge2mst_jax.convert.products import Product, count_by_kind, network_products


class AuditError(ValueError):
    """A product of two real numbers is left; the message names its layer."""


@dataclasses.dataclass(frozen=True)
class Audit:
    """Every product site of one execution, read off its traced program.

    A site is one operation of the program; `level` is an integer, `power_of_two` a shift.
    """

    execution: str
    products: tuple[Product, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Sites by kind, `{"binary x real": 174, ...}`."""
        return count_by_kind(self.products)

    @property
    def real_x_real(self) -> int:
        """Sites where two real numbers meet."""
        return sum(p.kinds == ("real", "real") for p in self.products)

    def check(self) -> None:
        """Raises an `AuditError` that names the first layer with a real × real product."""
        for product in self.products:
            if product.kinds == ("real", "real"):
                raise AuditError(
                    f"{product.layer}: a {product.operation} of real by real numbers is left after conversion"
                    " (a directly presented image is one: input_code='1x8' presents it as spikes)"
                )

    def as_dict(self) -> dict:
        """For JSON."""
        return {"execution": self.execution, **self.counts, "real_x_real": self.real_x_real}


def audit(net, execution: str = "spiking") -> Audit:
    """Lists every product of a deployed network.

    Args:
        net: from `convert.deploy`.
        execution: `"spiking"` or `"dense"`.

    >>> import jax, jax.numpy as jnp
    >>> from ge2mst_jax import create_model
    >>> from ge2mst_jax.convert import deploy
    >>> model = create_model("ge2mst_nano", stages=(("conv", 8, 1),), input_code="1x8")
    >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1), jnp.uint8))
    >>> audit(deploy(model, variables, (8, 8, 1))).real_x_real
    0
    """
    return Audit(execution, tuple(network_products(net, execution)))
