"""Small calls of every kernel, for compute-sanitizer: `python -m gpu.sanitized cuda|triton cuda|cpu`."""

import sys


def main(backend: str, device_name: str) -> None:
    from gpu.backends import forced

    with forced(backend, rehearse=device_name == "cpu"):
        import torch

        from gpu.checks import rand, whole
        from prunefast import ops

        device = torch.device(device_name)
        for shape in ((3, 3, 7, 5), (2, 8, 16, 16)):
            x0 = whole(0, 256, shape, device, torch.uint8)
            a, b = rand((2, shape[0]), device)
            position = torch.arange(shape[0], device=device)
            flip = position % 2 == 0
            labels = position % 2
            for last in (torch.contiguous_format, torch.channels_last):
                pred = rand(shape, device, torch.bfloat16).contiguous(memory_format=last).requires_grad_()
                for noise in ((1, position), rand(shape, device)):
                    loss, *_ = ops.denoising_loss(pred, x0, noise, a, b, labels=labels, num_classes=3, flip=flip)
                    loss.backward()
                    ops.add_noise(x0, a, b, noise, flip=flip, coordinates=True, memory_format=last)
        ops.randn_philox((3, 1001), 5, torch.arange(3, device=device))
        image = rand((2, 64, 9, 7), device).contiguous(memory_format=torch.channels_last).requires_grad_()
        weight, bias = rand((2, 64), device)
        ops.group_norm_silu(image, 8, weight, bias, *rand((2, 2, 64), device)).sum().backward()
        x, y = rand((130, 33), device), rand((70, 33), device)
        ops.nearest(x, y)
        ops.topk(x, y, 5)
        ops.kmeans(x, 7, iterations=2, init=x[:7].clone())
        if device.type == "cuda":
            torch.cuda.synchronize()
    print("sanitized: done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
