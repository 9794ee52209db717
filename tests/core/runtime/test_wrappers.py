"""A patched model among what other packages, and torch itself, put around it, in every order."""

import copy
import io
import itertools
import pickle
import warnings

import pytest
import torch
from diffusers import (
    PyramidAttentionBroadcastConfig,
    StableDiffusionPAGPipeline,
    apply_pyramid_attention_broadcast,
)
from diffusers.hooks import HookRegistry
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from diffusers.pipelines.deprecated.text_to_video_synthesis.pipeline_text_to_video_zero import (
    CrossFrameAttnProcessor,
    CrossFrameAttnProcessor2_0,
)

import catome
from catome.models._torch import hooks_of
from catome.runtime.hooks import Hook
from catome.tensors import kernels
from helpers.pipelines import ATTENTIONS, CONFIGS, SIZE, call, draw, noise, prompt, sd, searches, unet

by_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def self_attentions(model):
    return {name: module for name, module in model.named_modules() if name.endswith("attn1")}


def clean(model):
    """Return True if nothing of catome is on a model."""
    names = ("forward", "cache_context", "_reset_stateful_cache")
    left = [name for module in model.modules() for name in names if name in vars(module)]
    return not left and not any(hooks_of(module, Hook) for module in model.modules())


def flat(size: int = SIZE) -> torch.Tensor:
    """Latents of one colour: inside, tokens are the same, and merging them should change nothing."""
    return torch.ones(2, 4, size, size) * torch.tensor([0.3, -1.0])[:, None, None, None]


class Known:
    """The outputs of a model, by the state in which each is expected of it."""

    def __init__(self, **outputs):
        self.outputs = outputs

    def which(self, output):
        names = [name for name, known in self.outputs.items() if torch.allclose(output, known, atol=1e-5)]
        return "/".join(names) or "something else"


@pytest.fixture
def no_compiled_code():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# torch's wrappers


@pytest.mark.parametrize(("first", "name"), [("patched", "RECOMMENDED"), ("compiled", "PAPER")])
def test_a_pipeline_whose_model_is_compiled(first, name, no_compiled_code):
    """``pipe.unet = torch.compile(pipe.unet)``, as the documentation of diffusers has it."""
    config = CONFIGS[name]
    pipe = sd()
    plain = draw(pipe, 3)
    with catome.patched(pipe, config, schedule=[0, 2]):
        merged = draw(pipe, 3)
    known = Known(plain=plain, merged=merged)
    if first == "patched":
        catome.apply_patch(pipe, config, schedule=[0, 2])
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    if first == "compiled":
        assert known.which(draw(pipe, 3)) == "plain"
        catome.apply_patch(pipe, config, schedule=[0, 2])
    assert catome.is_patched(pipe)
    assert catome.is_patched(pipe.unet)
    with searches() as seen:
        assert known.which(draw(pipe, 3)) == "merged"
    assert seen.count == 2 * ATTENTIONS
    assert catome.summary(pipe).length == 3
    with catome.probe(pipe) as record:
        draw(pipe, 1)
    assert len(record.generations[0]) == ATTENTIONS
    with catome.patched(pipe.unet, ratio=0.5):
        assert known.which(draw(pipe, 3)) == "something else"
    assert known.which(draw(pipe, 3)) == "merged"
    catome.remove_patch(pipe)
    assert known.which(draw(pipe, 3)) == "plain"
    assert clean(pipe.unet._orig_mod)


class Adapted(torch.nn.Module):
    """A model inside another, as PEFT has it."""

    def __init__(self, model):
        super().__init__()
        self.base_model = model

    def get_base_model(self):
        return self.base_model

    def forward(self, *args, **kwargs):
        return self.base_model(*args, **kwargs)


WRAPPERS = {
    "DataParallel": torch.nn.DataParallel,
    "adapted": Adapted,
    "both": lambda model: torch.nn.DataParallel(Adapted(model)),
    "compiled, not called": lambda model: Adapted(torch.compile(model, backend="eager")),
}


@by_config
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("through", ["wrapper", "model"])
def test_a_wrapped_model(wrap, through, config):
    model = unet()
    wrapped = wrap(model)
    handle = wrapped if through == "wrapper" else model
    plain = call(model, noise(0))
    catome.apply_patch(handle, config)
    assert catome.is_patched(wrapped)
    assert catome.is_patched(model)
    merged = call(model, noise(0))
    assert not torch.equal(merged, plain)
    if wrap is not WRAPPERS["compiled, not called"]:
        assert torch.equal(call(wrapped, noise(0)), merged)
    assert len(catome.summary(wrapped).attentions) == ATTENTIONS
    catome.remove_patch(handle)
    assert torch.equal(call(model, noise(0)), plain)
    assert clean(model)


def replica_of(model):
    """As `torch.nn.parallel.replicate` makes it, on the same device."""
    replicas = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, replica in replicas.items():
        for name, child in module._modules.items():
            replica._modules[name] = child if child is None else replicas[child]
        for name, weight in module._parameters.items():
            setattr(replica, name, None if weight is None else 2 * weight.detach())
    return replicas[model]


@by_config
def test_a_replica_runs_with_its_own_weights(config):
    model = unet()
    twin = copy.deepcopy(model)
    for weight in twin.parameters():
        weight.data.mul_(2)
    catome.apply_patch(model, config)
    catome.apply_patch(twin, config)
    first = call(model, noise(0))
    assert torch.equal(call(replica_of(model), noise(0)), call(twin, noise(0)))
    catome.new_generation(model)
    assert torch.equal(call(model, noise(0)), first)
    catome.remove_patch(model)
    assert clean(model)


# Offloading

OFFLOADING = ("offload", "reload", "patch", "remove")


def orders():
    """Every order in which a model may be offloaded and brought back, patched and unpatched."""
    for order in itertools.permutations(OFFLOADING):
        if order.index("offload") < order.index("reload") and order.index("patch") < order.index("remove"):
            yield order


@pytest.mark.parametrize("order", orders(), ids="-".join)
@pytest.mark.parametrize("config", [CONFIGS["PAPER"], CONFIGS["RECOMMENDED"]], ids=["PAPER", "RECOMMENDED"])
def test_accelerates_offloading_comes_and_goes(order, config):
    accelerate = pytest.importorskip("accelerate")
    model = unet()
    plain = call(model, noise(0))
    with catome.patched(model, config):
        merged = call(model, noise(0))
    steps = {
        "offload": lambda: accelerate.cpu_offload(
            model, execution_device=torch.device("cpu"), offload_buffers=True
        ),
        "reload": lambda: accelerate.hooks.remove_hook_from_submodules(model),
        "patch": lambda: catome.apply_patch(model, config),
        "remove": lambda: catome.remove_patch(model),
    }
    done = []
    for step in order:
        steps[step]()
        done.append(step)
        expected = merged if "patch" in done and "remove" not in done else plain
        for _ in range(2):
            assert torch.equal(call(model, noise(0)), expected), done
            catome.new_generation(model)
    assert not any(hooks_of(module, Hook) for module in model.modules())


@pytest.mark.parametrize("first", ["patch", "offload"])
def test_a_patch_is_changed_on_an_offloaded_model(first):
    accelerate = pytest.importorskip("accelerate")
    model = unet()
    plain = call(model, noise(0))
    with catome.patched(model, CONFIGS["PAPER"]):
        merged = call(model, noise(0))
    if first == "patch":
        catome.apply_patch(model, CONFIGS["RECOMMENDED"], threshold=0.99)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    catome.apply_patch(model, CONFIGS["PAPER"])
    assert torch.equal(call(model, noise(0)), merged)
    with catome.patched(model, catome.TOME, merge_crossattn=True, merge_mlp=True):
        assert call(model, noise(0)).isfinite().all()
    assert torch.equal(call(model, noise(0)), merged)
    catome.remove_patch(model)
    assert torch.equal(call(model, noise(0)), plain)


@by_config
@pytest.mark.parametrize("first", ["patch", "offload"])
def test_offloading_with_the_kernels(first, config, monkeypatch):
    """They read memory, and weights that are elsewhere have none."""
    accelerate = pytest.importorskip("accelerate")

    def usable(x):
        return x.dtype in kernels.DTYPES and not (torch.is_grad_enabled() and x.requires_grad)

    monkeypatch.setattr(kernels, "usable", usable)
    model = unet()
    with catome.patched(model, config, merge_mlp=True):
        merged = call(model, noise(0, size=4))
    if first == "patch":
        catome.apply_patch(model, config, merge_mlp=True)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    if first == "offload":
        catome.apply_patch(model, config, merge_mlp=True)
    assert torch.equal(call(model, noise(0, size=4)), merged)


# Other token merging


@pytest.mark.parametrize(
    "order", list(itertools.product(["catome", "tomesd"], ["catome", "tomesd"])), ids="-".join
)
def test_another_token_merging_package(order):
    """Refused while both are on, whichever was first, and clean when either is off."""
    tomesd = pytest.importorskip("tomesd")
    model = unet()
    plain = call(model, noise(0))
    tomesd.apply_patch(model, ratio=0.5, use_rand=False)
    other = call(model, noise(0))
    tomesd.remove_patch(model)
    with catome.patched(model, CONFIGS["PAPER"]):
        mine = call(model, noise(0))
    first, first_off = order
    if first == "catome":
        catome.apply_patch(model, CONFIGS["PAPER"])
        tomesd.apply_patch(model, ratio=0.5, use_rand=False)
    else:
        tomesd.apply_patch(model, ratio=0.5, use_rand=False)
        with pytest.raises(RuntimeError, match="another token merging package"):
            catome.apply_patch(model, CONFIGS["PAPER"])
        assert not catome.is_patched(model)
        assert torch.equal(call(model, noise(0)), other)
        tomesd.remove_patch(model)
        catome.apply_patch(model, CONFIGS["PAPER"])
        assert torch.equal(call(model, noise(0)), mine)
        tomesd.apply_patch(model, ratio=0.5, use_rand=False)
    with pytest.raises(RuntimeError, match="another token merging package"):
        call(model, noise(0))
    if first_off == "catome":
        catome.remove_patch(model)
        assert torch.equal(call(model, noise(0)), other)
        tomesd.remove_patch(model)
    else:
        tomesd.remove_patch(model)
        assert torch.equal(call(model, noise(0)), mine)
        catome.remove_patch(model)
    assert torch.equal(call(model, noise(0)), plain)
    assert clean(model)


# Copies

COPIES = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": lambda model: torch.load(saved(model), weights_only=False),
    "deepcopy": copy.deepcopy,
    "copied twice": lambda model: copy.deepcopy(pickle.loads(pickle.dumps(model))),
}


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file


@by_config
@pytest.mark.parametrize("way", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("called", [False, True], ids=["new", "called"])
def test_a_copy_of_a_patched_model_merges_the_same(way, called, config):
    model = unet()
    plain = call(model, noise(0))
    config = config.changed(schedule=[0, 2], merge_mlp=True)
    catome.apply_patch(model, config)
    if called:
        call(model, noise(1))
    twin = way(model)
    catome.new_generation(model)
    merged = call(model, noise(0))
    assert catome.is_patched(twin)
    assert torch.equal(call(twin, noise(0)), merged)
    assert len(catome.summary(twin).attentions) == ATTENTIONS
    for weight in twin.parameters():
        weight.data.zero_()
    assert not call(twin, noise(0)).any(), "the copy runs with weights of its own"
    catome.remove_patch(twin)
    assert clean(twin)
    assert not catome.is_patched(twin)
    catome.new_generation(model)
    assert torch.equal(call(model, noise(0)), merged)
    catome.remove_patch(model)
    assert torch.equal(call(model, noise(0)), plain)
    assert clean(model)


def test_weights_are_saved_as_without_a_patch():
    model = unet()
    expected = {name: weight.clone() for name, weight in model.state_dict().items()}
    with catome.patched(model, CONFIGS["PAPER"]):
        call(model, noise(0))
        state = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], weight) for name, weight in expected.items())


# Other people's forward and hooks


@by_config
@pytest.mark.parametrize("off", ["patch first", "forward first"])
@pytest.mark.parametrize("on", ["patch first", "forward first"])
def test_a_forward_of_somebody_elses(on, off, config):
    model = unet()
    plain = call(model, noise(0))
    seen = []
    before = {}

    def put_on():
        for name, attention in self_attentions(model).items():
            inner = attention.forward
            before[name] = vars(attention).get("forward")

            def forward(*args, inner=inner, name=name, **kwargs):
                seen.append(name)
                return inner(*args, **kwargs)

            attention.forward = forward

    def take_off():
        for name, attention in self_attentions(model).items():
            del attention.forward
            if before[name] is not None:
                attention.forward = before[name]

    with catome.patched(model, config):
        merged = call(model, noise(0))
    if on == "forward first":
        put_on()
    catome.apply_patch(model, config)
    if on == "patch first":
        put_on()
    assert torch.equal(call(model, noise(0)), merged)
    assert len(seen) == len(self_attentions(model))
    if off == "patch first":
        catome.remove_patch(model)
        seen.clear()
        assert torch.equal(call(model, noise(0)), plain)
        assert len(seen) == len(self_attentions(model)), "it is still there"
        take_off()
    else:
        take_off()
        seen.clear()
        catome.new_generation(model)
        assert torch.equal(call(model, noise(0)), merged)
        assert not seen
        catome.remove_patch(model)
    assert torch.equal(call(model, noise(0)), plain)
    assert not any(hooks_of(module, Hook) for module in model.modules())


def test_a_class_of_somebody_elses():
    """Packages that give blocks another class, whose forward does something else."""
    model = unet()
    blocks = [module for module in model.modules() if type(module).__name__ == "BasicTransformerBlock"]
    kind = type(blocks[0])

    class Louder(kind):
        def forward(self, *args, **kwargs):
            return 1.5 * super().forward(*args, **kwargs)

    def swap(to):
        for block in blocks:
            block.__class__ = to

    plain = call(model, noise(0))
    swap(Louder)
    loud = call(model, noise(0))
    with catome.patched(model, CONFIGS["PAPER"]):
        both = call(model, noise(0))
    swap(kind)
    catome.apply_patch(model, CONFIGS["PAPER"])
    merged = call(model, noise(0))
    swap(Louder)
    catome.new_generation(model)
    assert torch.equal(call(model, noise(0)), both)
    swap(kind)
    catome.new_generation(model)
    assert torch.equal(call(model, noise(0)), merged)
    swap(Louder)
    catome.remove_patch(model)
    assert torch.equal(call(model, noise(0)), loud)
    swap(kind)
    assert torch.equal(call(model, noise(0)), plain)
    assert clean(model)


def broadcast(model):
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(100, 950),
        current_timestep_callback=lambda: 500,
    )
    apply_pyramid_attention_broadcast(model, config)


def stop_broadcast(model):
    for attention in self_attentions(model).values():
        HookRegistry.check_if_exists_or_initialize(attention).remove_hook("pyramid_attention_broadcast")


@by_config
@pytest.mark.parametrize("first", ["patch", "broadcast"])
@pytest.mark.parametrize("first_off", ["patch", "broadcast"])
def test_a_hook_of_diffusers_is_removed_from_under_ours(first, first_off, config):
    pipe = sd()
    plain = draw(pipe, 4)
    with catome.patched(pipe, config):
        merged = draw(pipe, 4)
    if first == "patch":
        catome.apply_patch(pipe, config)
    broadcast(pipe.unet)
    kept = draw(pipe, 4)
    if first == "broadcast":
        catome.apply_patch(pipe, config)
        assert not torch.equal(draw(pipe, 4), kept)
    if first_off == "patch":
        catome.remove_patch(pipe)
        assert not torch.equal(draw(pipe, 4), plain), "it still broadcasts"
        stop_broadcast(pipe.unet)
    else:
        stop_broadcast(pipe.unet)
        assert torch.equal(draw(pipe, 4), merged)
        catome.remove_patch(pipe)
    assert torch.equal(draw(pipe, 4), plain)
    assert not any(hooks_of(module, Hook) for module in pipe.unet.modules())


# Parts of the block


def ip_adapter(model):
    """Random weights of an IP-Adapter for a model, and an image's embedding."""
    torch.manual_seed(5)
    weights = {}
    names = [name for name in model.attn_processors if name.endswith("attn2.processor")]
    for i, name in enumerate(names):
        attention = model.get_submodule(name.removesuffix(".processor"))
        weights[f"{2 * i + 1}.to_k_ip.weight"] = torch.randn(attention.to_k.weight.shape)
        weights[f"{2 * i + 1}.to_v_ip.weight"] = torch.randn(attention.to_v.weight.shape)
    projection = {
        "proj.weight": torch.randn(128, 24),
        "proj.bias": torch.zeros(128),
        "norm.weight": torch.ones(32),
        "norm.bias": torch.zeros(32),
    }
    model._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": weights}])
    return [torch.cat([torch.zeros(1, 1, 24), torch.randn(1, 1, 24)])]


@pytest.mark.parametrize("amount", [dict(ratio=0.5), dict(threshold=0.3)], ids=["ratio", "threshold"])
def test_cross_attention_is_merged_with_an_ip_adapter(amount):
    """Its attention is called twice, for the text and for the image."""
    pipe = sd()
    embeds = ip_adapter(pipe.unet)

    def drawn(seed=0, images=1):
        return draw(pipe, 2, seed, images, ip_adapter_image_embeds=embeds)

    cross = catome.PAPER.changed(**amount, schedule=None, merge_attn=False, merge_crossattn=True)
    for scale in (0.0, 0.8):
        pipe.set_ip_adapter_scale(scale)
        plain = drawn()
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            with catome.patched(pipe, cross):
                merged = drawn()
                assert not torch.equal(merged, plain)
                # each image by its own pairs, and with its own prompt
                both = drawn(images=2)
                torch.testing.assert_close(both[:1], merged, atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(both[1:], drawn(seed=1), atol=1e-4, rtol=1e-4)
            with catome.patched(pipe, cross, ratio=0.0):
                assert torch.equal(drawn(), plain)


@pytest.mark.parametrize("name", ["PAPER", "RECOMMENDED"])
def test_an_mlp_that_gets_its_tokens_in_chunks_says_so(name):
    model = unet()
    plain = call(model, noise(0))
    mlp = CONFIGS[name].changed(merge_attn=False, merge_mlp=True)
    with catome.patched(model, mlp):
        assert not torch.equal(call(model, noise(0)), plain)
    for block in (module for module in model.modules() if hasattr(module, "set_chunk_feed_forward")):
        block.set_chunk_feed_forward(64, dim=1)
    chunked = call(model, noise(0))
    catome.apply_patch(model, mlp)
    with pytest.warns(UserWarning, match="in chunks") as caught:
        outputs = [call(model, noise(seed)) for seed in (1, 2, 0)]
    assert torch.equal(outputs[2], chunked)
    assert len(caught) == 1
    assert "in chunks" in str(catome.summary(model))
    assert "in chunks" in " ".join(catome.summary(model).remarks)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for block in (module for module in model.modules() if hasattr(module, "set_chunk_feed_forward")):
            block.set_chunk_feed_forward(None, dim=0)
        catome.new_generation(model)
        assert not torch.equal(call(model, noise(0)), plain)
        assert "in chunks" not in str(catome.summary(model))


# Processors


def set_processor(make):
    def change(model):
        for attention in self_attentions(model).values():
            attention.set_processor(make())

    return change


class Doubled:
    """A processor of somebody's own, that calls torch's attention twice and takes the mean."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            projection(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for projection, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        both = [
            torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=scale)
            for scale in (0.3, 0.7)
        ]
        return attn.to_out[0](sum(both).transpose(1, 2).flatten(2) / 2)


PROCESSORS = {
    "AttnProcessor2_0": set_processor(AttnProcessor2_0),
    "AttnProcessor": set_processor(AttnProcessor),
    "SlicedAttnProcessor": set_processor(lambda: SlicedAttnProcessor(2)),
    "fused": lambda model: model.fuse_qkv_projections(),
    "cross-frame": set_processor(lambda: CrossFrameAttnProcessor2_0(1)),
    "called twice": set_processor(Doubled),
}


@by_config
@pytest.mark.parametrize("change", PROCESSORS.values(), ids=PROCESSORS)
def test_whatever_the_processor_what_it_gives_is_right(change, config):
    model = unet()
    change(model)
    sample = noise(0, rows=2)
    plain = call(model, sample)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with catome.patched(model, config, ratio=0.0):
            torch.testing.assert_close(call(model, sample), plain, atol=1e-5, rtol=1e-5)
        with catome.patched(model, config, ratio=0.5):
            assert not torch.allclose(call(model, sample), plain, atol=1e-5)
            assert catome.summary(model).merged_share == 0.5
        # tokens that are the same count as many, and nothing changes
        flat_plain = call(model, flat())
        with catome.patched(model, config, threshold=0.99999, weighted=True):
            torch.testing.assert_close(call(model, flat()), flat_plain, atol=2e-3, rtol=2e-3)
            assert catome.summary(model).merged_share > 0.05
    assert torch.equal(call(model, sample), plain)


@by_config
def test_plain_processors_merge_alike(config):
    """Three ways to compute one attention."""
    outputs = []
    for name in ("AttnProcessor2_0", "AttnProcessor", "SlicedAttnProcessor"):
        model = unet()
        PROCESSORS[name](model)
        with catome.patched(model, config):
            outputs.append(call(model, noise(0, rows=3)))
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], atol=1e-4, rtol=1e-4)


@by_config
def test_attention_whose_keys_nothing_shows_is_left_alone_and_says_so(config):
    """Such as keys of the first frame for all frames, by ``torch.bmm``."""
    model = unet()
    set_processor(lambda: CrossFrameAttnProcessor(1))(model)
    plain = call(model, noise(0, rows=2))
    catome.apply_patch(model, config)
    with pytest.warns(UserWarning, match="scaled_dot_product_attention") as caught:
        outputs = [call(model, noise(seed, rows=2)) for seed in (1, 2, 0)]
    assert torch.equal(outputs[2], plain)
    assert len(caught) == 1
    assert catome.summary(model).merged_share == 0


def test_cross_frame_attention_merges_each_row_by_the_keys_that_it_has():
    """All frames have the first one's keys, so all have its pairs."""
    model = unet()
    PROCESSORS["cross-frame"](model)
    with catome.patched(model, CONFIGS["RECOMMENDED"], ratio=0.5) as patched, searches() as seen:
        call(patched, noise(0, rows=3))
        plans = catome.patch.applied_patch(model).cached()
    assert seen.rows == [3] * ATTENTIONS
    for plan in plans:
        assert torch.equal(plan.target, plan.target[:1].expand(3, -1))


@by_config
@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_perturbed_attention_guidance(scale, config):
    pipe = sd(StableDiffusionPAGPipeline, pag_applied_layers=["down"])

    def drawn():
        return draw(pipe, 2, images=2, pag_scale=scale)

    plain = drawn()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with catome.patched(pipe, config, ratio=0.0):
            torch.testing.assert_close(drawn(), plain, atol=1e-5, rtol=1e-5)
        with catome.patched(pipe, config):
            merged = drawn()
            assert not torch.equal(merged, plain)
            assert all(attention.merged_share > 0 for attention in catome.summary(pipe).attentions)
    assert torch.equal(drawn(), plain)


# torch's own modes


@by_config
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("amount", [dict(threshold=0.3), dict(threshold=1.0), dict(ratio=0.5)])
def test_another_default_device(device, amount, config):
    """Tensors that nobody told where to live would be there, and on a "meta" device have no numbers."""
    config = config.changed(**amount, dst="random")
    model = unet()

    def outputs():
        samples = [noise(0), noise(0) + 0.1 * noise(1), torch.cat([noise(0), noise(2)])]
        texts = [prompt(0), prompt(0), prompt(0, 2)]
        return samples, texts

    samples, texts = outputs()
    timesteps = torch.tensor([800, 700, 600])
    with catome.patched(model, config):
        expected = [call(model, *each) for each in zip(samples, timesteps, texts, strict=True)]
    with torch.device(device):
        with catome.patched(model, config):
            found = [call(model, *each) for each in zip(samples, timesteps, texts, strict=True)]
            text = str(catome.summary(model))
        catome.match(torch.randn(1, 16, 4, device="cpu"), (4, 4), ratio=0.5, dst="random")
    assert "all" in text
    for a, b in zip(found, expected, strict=True):
        assert a.device.type == "cpu"
        assert torch.equal(a, b)


def modes():
    return torch.overrides._get_current_function_mode_stack()


@by_config
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_an_attention_that_is_interrupted_leaves_no_mode_behind(error, config):
    model = unet()
    other = unet()
    attention = next(iter(self_attentions(model).values()))
    plain = call(other, noise(0))
    catome.apply_patch(model, config)
    merged = call(model, noise(0))
    for then in ("another model", "the model", "the patch off"):

        def interrupt(module, args):
            raise error

        handle = attention.to_out[0].register_forward_pre_hook(interrupt)
        with pytest.raises(error):
            call(model, noise(0))
        handle.remove()
        if then == "another model":
            assert torch.equal(call(other, noise(0)), plain)
        if then == "the patch off":
            catome.remove_patch(model)
        else:
            catome.new_generation(model)
            assert torch.equal(call(model, noise(0)), merged)
        assert modes() == []
    assert torch.equal(call(model, noise(0)), plain)
    assert clean(model)


@by_config
def test_a_patched_model_inside_an_attention_of_another(config):
    """The inner one must not take the outer one's mode for a leftover."""
    outer = unet()
    inner = unet()
    attention = next(iter(self_attentions(outer).values()))
    catome.apply_patch(outer, config)
    catome.apply_patch(inner, config)
    expected = call(outer, noise(0))
    inside = call(inner, noise(1))
    found = []

    def ask(module, args):
        catome.new_generation(inner)
        found.append(call(inner, noise(1)))

    attention.to_q.register_forward_pre_hook(ask)
    catome.new_generation(outer)
    assert torch.equal(call(outer, noise(0)), expected)
    assert torch.equal(found[0], inside)
    assert modes() == []


def example():
    return noise(0), torch.tensor(401), prompt(0)


WAYS = {
    "fullgraph": lambda model: torch.compile(model, fullgraph=True, backend="eager")(*example()),
    "export": lambda model: torch.export.export(model, example()),
    "trace": lambda model: torch.jit.trace(model, example(), strict=False, check_trace=False),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("name", ["PAPER", "RECOMMENDED"])
def test_what_needs_one_graph_is_refused_in_one_sentence(way, name, no_compiled_code):
    model = unet()
    plain = call(model, noise(0))
    catome.apply_patch(model, CONFIGS[name])
    merged = call(model, noise(0))
    with torch.no_grad(), pytest.raises(Exception, match="catome") as caught:
        way(model)
    assert "remove_patch" in str(caught.value)
    assert modes() == []
    catome.new_generation(model)
    assert torch.equal(call(model, noise(0)), merged)
    catome.remove_patch(model)
    assert torch.equal(call(model, noise(0)), plain)
