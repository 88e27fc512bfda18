"""The one place that asks whether a network is trained or deployed: layers by the wire's execution."""

from ge2mst_jax.nn import deployed, training
from ge2mst_jax.nn.wire import Wire


def layers_of(wire: Wire):
    """The module whose `Neuron`, `Synapse`, `Head`, `Attention`, ... a network of this wire is made of."""
    return training if wire.execution == "training" else deployed


def Neuron(wire: Wire, *fields, **named):
    """A neuron layer; fields, call and parameters: `nn.neuron.NeuronLayer`."""
    return layers_of(wire).Neuron(wire, *fields, **named)


def Synapse(wire: Wire, *fields, **named):
    """A synaptic layer; fields, call and parameters: `nn.synapse.SynapseLayer`."""
    return layers_of(wire).Synapse(wire, *fields, **named)


def Head(wire: Wire, *fields, **named):
    """The read-out; fields, call and parameters: `nn.synapse.HeadLayer`."""
    return layers_of(wire).Head(wire, *fields, **named)


def Attention(wire: Wire, *fields, **named):
    """Attention of three signals; fields and call: `nn.attention.AttentionLayer`."""
    return layers_of(wire).Attention(wire, *fields, **named)


def GateSums(wire: Wire, *fields, **named):
    """What a gate decides by, of one or two signals; fields and call: `nn.gates.GateSumsLayer`."""
    return layers_of(wire).GateSums(wire, *fields, **named)


def Gated(wire: Wire, *fields, **named):
    """What a gate lets through; fields and call: `nn.gates.GatedLayer`."""
    return layers_of(wire).Gated(wire, *fields, **named)
