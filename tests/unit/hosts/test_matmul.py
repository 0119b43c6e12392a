import pytest
import torch

from hybridrl.hosts import matmul


@pytest.fixture
def replaced():
    matmul.replace()
    yield
    matmul._library._destroy()
    matmul._library, matmul._replaces_all = None, False
    matmul._weights.clear()


def matrices(rows, inner, columns, *, dtype=torch.float32):
    torch.manual_seed(0)
    return torch.randn(rows, inner, dtype=dtype), torch.randn(inner, columns, dtype=dtype)


SHAPES = [(0, 64, 64), (1, 576, 1536), (4, 512, 1024), (64, 0, 64), (64, 128, 256), (300, 129, 65)]


@pytest.mark.parametrize("rows, inner, columns", SHAPES)
@pytest.mark.parametrize("transposed", [False, True])
def test_products_are_those_of_double_precision(replaced, rows, inner, columns, transposed):
    left, right = matrices(rows, inner, columns)
    if transposed:
        left, right = left.t().contiguous().t(), right.t().contiguous().t()
    wanted = left.double() @ right.double()
    torch.testing.assert_close(left @ right, wanted.float(), rtol=2e-5, atol=2e-4)
    added = torch.randn(columns)
    found = torch.nn.functional.linear(left, right.t(), added)
    torch.testing.assert_close(found, (wanted + added).float(), rtol=2e-5, atol=2e-4)


def test_gradients_are_those_of_double_precision(replaced):
    left, right = matrices(128, 96, 160)
    bias = torch.randn(160)
    single = [one.clone().requires_grad_() for one in (left, right, bias)]
    double = [one.double().requires_grad_() for one in (left, right, bias)]
    for given in (single, double):
        (torch.addmm(given[2], given[0], given[1]) ** 2).sum().backward()
    for one, other in zip(single, double):
        torch.testing.assert_close(one.grad, other.grad.float(), rtol=1e-5, atol=1e-2)


def test_other_dtypes_scales_and_sums_stay_torchs(replaced):
    left, right = matrices(64, 128, 256, dtype=torch.float64)
    torch.testing.assert_close(left @ right, torch.einsum("ij,jk->ik", left, right))
    whole, single = torch.randn(64, 256), (left.float(), right.float())
    found = torch.addmm(whole, *single, beta=0.5, alpha=2)
    torch.testing.assert_close(found, 0.5 * whole + 2 * (single[0] @ single[1]))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        torch.randn(64, 128) @ torch.randn(129, 256)


def test_large_products_really_go_to_onednn(replaced):
    left, right = matrices(64, 128, 256)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        left @ right
    assert "mkldnn::_linear_pointwise" in {event.key for event in profile.key_averages()}


def test_a_processor_of_intel_keeps_mkl(monkeypatch):
    given = {
        "vendor_id : GenuineIntel\nflags : avx2 avx512f": False,
        "vendor_id : AuthenticAMD\nflags : avx2 avx512f": True,
        "vendor_id : AuthenticAMD\nflags : avx2": False,
    }
    for text, wanted in given.items():
        monkeypatch.setattr(matmul, "_processor", lambda text=text: text)
        assert matmul.mkl_is_slow.__wrapped__() is wanted


@pytest.fixture
def model(replaced, monkeypatch):
    """One weight that is packed and one that is too small."""
    monkeypatch.setattr(matmul, "_has_avx512", lambda: torch.backends.mkldnn.is_available())
    torch.manual_seed(0)
    made = torch.nn.Sequential(torch.nn.Linear(512, 1024), torch.nn.Linear(1024, 8))
    assert matmul.packs(made)
    matmul.pack(made)
    return made


def doubled(model, left):
    with torch.no_grad():
        return model.double()(left.double()).float()


def packed_weights():
    return [tuple(one.parameter.shape) for one in matmul._weights.values() if one.packed is not None]


@pytest.mark.parametrize("rows", [0, 1, 4, 33])
def test_products_with_a_packed_weight_are_those_of_double_precision(model, rows):
    left = torch.randn(rows, 512)
    with torch.inference_mode():
        found = model(left), left @ model[0].weight.t()
    assert packed_weights() == ([(1024, 512)] if rows else [])
    wanted = doubled(model, left), (left.double() @ model[0].weight.double().t()).float()
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-5)


def test_a_weight_that_was_written_is_packed_anew(model):
    left = torch.randn(8, 512)
    with torch.no_grad():
        old = model(left)
        model[0].weight.mul_(2)
        assert torch.equal(model(left), old)  # why whoever writes must call pack()
        matmul.pack(model)
        assert not packed_weights()
        torch.testing.assert_close(model(left), doubled(model, left), rtol=2e-5, atol=2e-5)


def test_a_weight_that_has_moved_and_parts_of_one_are_multiplied_as_they_are(model):
    left = torch.randn(8, 512)
    with torch.no_grad():
        model(left)
        before, weight = model[0].weight.data, model[0].weight
        weight.data = torch.zeros_like(before)
        assert not (left @ weight.t()).any()
        assert (left @ before.t()).any()  # the old address, of which nothing is known any more
        weight.data = before
        part = left @ weight[:512].t()
        square = left @ weight.view(512, 1024)
    torch.testing.assert_close(
        part, (left.double() @ weight[:512].double().t()).float(), rtol=2e-5, atol=2e-5
    )
    torch.testing.assert_close(
        square, (left.double() @ weight.view(512, 1024).double()).float(), rtol=2e-5, atol=2e-5
    )


def test_a_model_of_small_or_other_weights_is_left_alone(replaced, monkeypatch):
    monkeypatch.setattr(matmul, "_has_avx512", lambda: True)
    for made in (torch.nn.Linear(64, 64), torch.nn.Linear(1024, 1024).bfloat16()):
        matmul.pack(made)
        assert not matmul.packs(made) and not matmul._weights
