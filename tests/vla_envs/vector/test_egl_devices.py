"""With several GPUs a process draws on the one it computes on, however that is named; nothing EGL answers is an error."""

import pytest
from fake_egl import GPU, SOFTWARE, FakeDevice, FakeEGL

from vla_envs.vector.egl_devices import in_order_of_preference, list_devices

UUIDS = [f"GPU-{digit * 8}-0000-4000-8000-{digit * 12}" for digit in "0123"]


def host(*cuda_ordinals: int | None) -> FakeEGL:
    """GPUs with these numbers, in EGL's order, and then software."""
    gpus = [FakeDevice(cuda_ordinal=number, uuid=UUIDS[index]) for index, number in enumerate(cuda_ordinals)]
    return FakeEGL([*gpus, FakeDevice(extensions=SOFTWARE)])


def first_choice(egl: FakeEGL, **environment: str) -> int:
    """Index of the device that is tried first."""
    return in_order_of_preference(list_devices(egl), environment)[0].index


def test_without_any_choice_the_first_cuda_device_draws_wherever_egl_lists_it():
    assert first_choice(host(0, 1)) == 0
    assert first_choice(host(1, 0)) == 1


def test_a_single_gpu_draws_whatever_cuda_calls_it():
    for visible in ("0", "1", "7", "", "-1", UUIDS[3], "MIG-0a1b", "nonsense"):
        assert first_choice(host(None), CUDA_VISIBLE_DEVICES=visible) == 0
        assert first_choice(host(0), CUDA_VISIBLE_DEVICES=visible, LOCAL_RANK="3") == 0


def test_the_visible_gpu_draws_where_the_driver_numbers_visible_devices_only():
    assert first_choice(host(None, 0, None), CUDA_VISIBLE_DEVICES="1") == 1
    assert first_choice(host(None, 1, 0), CUDA_VISIBLE_DEVICES="2,1") == 2


def test_the_visible_gpu_draws_where_the_driver_numbers_all_devices():
    assert first_choice(host(0, 1, 2), CUDA_VISIBLE_DEVICES="1") == 1
    assert first_choice(host(2, 1, 0), CUDA_VISIBLE_DEVICES="2") == 0


def test_each_rank_of_a_host_draws_on_its_own_gpu():
    ranks = [str(rank) for rank in range(4)]
    assert [first_choice(host(3, 2, 1, 0), LOCAL_RANK=rank) for rank in ranks] == [3, 2, 1, 0]
    assert [first_choice(host(None, 0, None, 1), CUDA_VISIBLE_DEVICES="1,3", LOCAL_RANK=rank) for rank in ranks] == [1, 3, 1, 3]
    assert [first_choice(host(0, 1, 2, 3), CUDA_VISIBLE_DEVICES="1,3", LOCAL_RANK=rank) for rank in ranks] == [1, 3, 1, 3]


def test_ranks_are_spread_over_gpus_of_other_makers_in_egls_order():
    other = FakeEGL([FakeDevice(extensions=SOFTWARE), FakeDevice(extensions=""), FakeDevice(extensions="")])
    assert [first_choice(other, LOCAL_RANK=rank) for rank in "012"] == [1, 2, 1]


def test_a_gpu_may_be_named_by_its_uuid_or_the_beginning_of_it():
    assert first_choice(host(0, None, None), CUDA_VISIBLE_DEVICES=UUIDS[2]) == 2
    assert first_choice(host(None, None, None), CUDA_VISIBLE_DEVICES=UUIDS[1][:9]) == 1
    assert first_choice(host(None, None, None), CUDA_VISIBLE_DEVICES=",".join(UUIDS[1:3]), LOCAL_RANK="1") == 2
    assert first_choice(host(None, None, None), CUDA_VISIBLE_DEVICES=f"MIG-{UUIDS[1]}/3/0") == 1


def test_a_uuid_that_egl_does_not_tell_is_found_by_its_place():
    nameless = FakeEGL([FakeDevice(extensions="EGL_NV_device_cuda", cuda_ordinal=number) for number in (None, 0)])
    assert first_choice(nameless, CUDA_VISIBLE_DEVICES=UUIDS[2]) == 1


@pytest.mark.parametrize("visible", ["", "-1", "NoDevFiles", "9", "MIG-0a1b2c3d-0000-4000-8000-000000000000"])
def test_where_the_visible_gpu_cannot_be_told_some_gpu_draws(visible: str):
    assert first_choice(host(None, None), CUDA_VISIBLE_DEVICES=visible) == 0


def test_entries_behind_one_that_names_no_device_do_not_count():
    assert first_choice(host(0, None), CUDA_VISIBLE_DEVICES="0,-1,1", LOCAL_RANK="1") == 0


def test_other_gpus_and_then_software_are_tried_after_the_preferred_one():
    order = in_order_of_preference(list_devices(host(0, 1, 2)), {"LOCAL_RANK": "1"})
    assert [device.index for device in order] == [1, 0, 2, 3]


def test_a_device_named_by_its_place_in_egls_list_comes_before_all():
    for index in range(3):
        assert first_choice(host(0, 1), MUJOCO_EGL_DEVICE_ID=str(index), CUDA_VISIBLE_DEVICES="0") == index
    assert first_choice(host(1, 0), MUJOCO_EGL_DEVICE_ID="") == 1


@pytest.mark.parametrize("index", ["3", "-1", "cuda:0", "0,1", "1.0"])
def test_a_device_that_egl_does_not_list_is_refused(index: str):
    with pytest.raises(ValueError, match=rf"MUJOCO_EGL_DEVICE_ID must be .* EGL's list of 3, counted from 0, got '{index}'"):
        first_choice(host(0, 1), MUJOCO_EGL_DEVICE_ID=index)


def test_an_egl_that_lacks_the_queries_lists_its_devices_all_the_same():
    missing = ("eglQueryDeviceAttribEXT", "eglQueryDeviceBinaryEXT", "eglGetError")
    devices = list_devices(FakeEGL([FakeDevice(cuda_ordinal=0), FakeDevice(extensions=SOFTWARE)], missing))
    assert [(device.is_gpu, device.cuda_ordinal, device.uuid) for device in devices] == [
        (True, None, None),
        (False, None, None),
    ]
    assert list_devices(FakeEGL([FakeDevice()], (*missing, "eglQueryDeviceStringEXT")))[0].is_gpu


def test_a_query_that_fails_leaves_no_error_for_the_next_call():
    egl = host(None)
    device = list_devices(egl)[0]
    assert (device.is_gpu, device.cuda_ordinal, device.uuid) == (True, None, UUIDS[0])
    assert not egl.pending_error
    egl.pending_error = True  # left by someone else
    assert list_devices(egl)[0].uuid is None


def test_devices_are_not_asked_for_their_cuda_numbers_before_several_gpus_make_it_necessary():
    egl = FakeEGL([FakeDevice(extensions=GPU)], ("eglQueryDeviceAttribEXT", "eglQueryDeviceBinaryEXT"))
    asked = []
    get_address = egl.eglGetProcAddress
    egl.eglGetProcAddress = lambda name: asked.append(name) or get_address(name)
    in_order_of_preference(list_devices(egl), {"CUDA_VISIBLE_DEVICES": "1", "LOCAL_RANK": "0"})
    assert set(asked) == {b"eglQueryDeviceStringEXT", b"eglGetError"}


def test_a_device_says_all_that_is_known_of_it():
    gpu, software = list_devices(host(4))
    assert str(gpu) == f"EGL device 0, CUDA device 4, {UUIDS[0]}"
    assert str(software) == "EGL device 1"
