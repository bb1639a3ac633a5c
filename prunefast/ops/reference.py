"""The truth: direct formulas in NumPy float64 (integers for Philox), slow and plain, shared with no kernel."""

import numpy as np


def squared_distances(x, y):
    """[N, K]: sum over columns of (x_i - y_j)^2."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return np.stack([((row - y) ** 2).sum(1) for row in x]) if len(x) else np.zeros((0, len(y)))


def topk(x, y, k, exclude_self=False):
    """(index, squared distance), nearest first, ties to the smallest index."""
    distance = squared_distances(x, y)
    if exclude_self:
        np.fill_diagonal(distance, np.inf)
    order = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(distance, order, 1)


def gaussian(x):
    """Mean and covariance with divisor N."""
    x = np.asarray(x, np.float64)
    mean = x.mean(0)
    return mean, sum(np.outer(row - mean, row - mean) for row in x) / len(x)


def gaussian_log_likelihood(x, mean, covariance, ridge):
    """log N(x; mean, covariance + ridge I) by inverse and determinant."""
    x = np.asarray(x, np.float64)
    loaded = covariance + ridge * np.eye(len(mean))
    centred = x - mean
    quadratic = (centred @ np.linalg.inv(loaded) * centred).sum(1)
    return -0.5 * (quadratic + np.linalg.slogdet(loaded)[1] + len(mean) * np.log(2 * np.pi))


def ppca_log_likelihood(x, mean, components, explained_variance, noise_variance, ridge):
    """log N(x; mean, C + ridge I), C the model's full covariance (Tipping & Bishop 1999, equation 5)."""
    components, identity = np.asarray(components, np.float64), np.eye(len(mean))
    own = np.asarray(explained_variance) - noise_variance
    return gaussian_log_likelihood(x, mean, (components.T * own) @ components + noise_variance * identity, ridge)


def unit(x0):
    """uint8 images to [-1, 1]; floats as they are."""
    x0 = np.asarray(x0)
    return x0.astype(np.float64) / 127.5 - 1 if x0.dtype == np.uint8 else x0.astype(np.float64)


def mirror_and_cut(images, corner=None, size=None, flip=None):
    """Sample by sample: mirror left to right where `flip`, then cut `size` (height, width) at `corner`."""
    result = []
    for i, image in enumerate(np.asarray(images)):
        if flip is not None and flip[i]:
            image = image[:, :, ::-1]
        if corner is not None:
            top, left = corner[i]
            image = image[:, top : top + size[0], left : left + size[1]]
        result.append(image)
    return np.stack(result)


def add_noise(x0, alpha, sigma, noise):
    shape = (-1,) + (1,) * (np.ndim(x0) - 1)
    alpha, sigma, noise = (np.asarray(value, np.float64) for value in (alpha, sigma, noise))
    return alpha.reshape(shape) * unit(x0) + sigma.reshape(shape) * noise


def denoising_loss(pred, x0, noise, a, b, weight=None):
    """(loss, per_sample, gradient of loss for pred)."""
    shape = (-1,) + (1,) * (np.ndim(pred) - 1)
    pred, a, b, noise = (np.asarray(value, np.float64) for value in (pred, a, b, noise))
    residual = pred - a.reshape(shape) * unit(x0) - b.reshape(shape) * noise
    per_sample = (residual**2).reshape(len(residual), -1).mean(1)
    weight = np.ones(len(residual)) if weight is None else np.asarray(weight, np.float64)
    gradient = 2 * residual * weight.reshape(shape) / residual.size
    return (weight * per_sample).mean(), per_sample, gradient


def class_excess(per_sample, labels, classes, reference=None):
    """Sum over each class of max(per_sample - reference, 0), and its number of samples."""
    excess, count = np.zeros(classes), np.zeros(classes, np.int64)
    for i, label in enumerate(labels):
        excess[label] += max(per_sample[i] - (0.0 if reference is None else reference[i]), 0.0)
        count[label] += 1
    return excess, count


def philox_words(counter, key):
    """Philox-4x32-10 on Python integers: four counter words, two key words -> four words."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def philox_uniform(size, seed, position, stream):
    """`size` uniforms of one sample: (k + 1/2) / 2^23 of the upper 23 bits of each word."""
    position &= 0xFFFFFFFFFFFFFFFF
    key = (seed & 0xFFFFFFFF, seed >> 32)
    words = []
    for quad in range((size + 3) // 4):
        words += philox_words((quad, stream, position & 0xFFFFFFFF, position >> 32), key)
    return (np.array([word >> 9 for word in words], np.float64) + 0.5)[:size] / 2**23


def philox_normal(size, seed, position, stream):
    """`size` normals of one sample: Box-Muller on words (0, 1) and (2, 3) of each quad, cosine first."""
    uniform = philox_uniform((size + 3) // 4 * 4, seed, position, stream)
    radius, angle = np.sqrt(-2 * np.log(uniform[0::2])), 2 * np.pi * uniform[1::2]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(-1)[:size]


def group_norm_silu(x, groups, weight, bias, scale=None, shift=None, eps=1e-5):
    x = np.asarray(x, np.float64)
    grouped = x.reshape(x.shape[0], groups, -1)
    grouped = (grouped - grouped.mean(2, keepdims=True)) / np.sqrt(grouped.var(2, keepdims=True) + eps)
    per_channel = (1, -1) + (1,) * (x.ndim - 2)
    y = grouped.reshape(x.shape) * np.reshape(weight, per_channel) + np.reshape(bias, per_channel)
    if scale is not None:
        per_sample = x.shape[:2] + (1,) * (x.ndim - 2)
        y = y * (1 + np.reshape(scale, per_sample)) + np.reshape(shift, per_sample)
    return y / (1 + np.exp(-y))


def conv3x3(x, weight, bias=None):
    """Stride 1, a border of one pixel of zeros."""
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    y = np.zeros((len(x), len(weight), height, width))
    for row in range(3):
        for column in range(3):
            seen = padded[:, :, row : row + height, column : column + width]
            y += np.einsum("ncyx,oc->noyx", seen, weight[:, :, row, column])
    return y if bias is None else y + np.asarray(bias, np.float64)[:, None, None]
