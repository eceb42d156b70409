"""Random damage to bytes."""


def flip(data, random):
    offset = random.randrange(len(data))
    data[offset] ^= 1 << random.randrange(8)


def overwrite(data, random):
    offset = random.randrange(len(data))
    data[offset : offset + random.randint(1, 16)] = random.randbytes(random.randint(1, 16))


def cut(data, random):
    del data[random.randrange(len(data)) :]


def insert(data, random):
    offset = random.randrange(len(data))
    data[offset:offset] = random.randbytes(random.randint(1, 64))


def remove(data, random):
    offset = random.randrange(len(data))
    del data[offset : offset + random.randint(1, 64)]


def repeat(data, random):
    offset = random.randrange(len(data))
    data[offset:offset] = data[offset : offset + random.randint(1, 512)]


def huge(data, random):
    offset = random.randrange(len(data))
    width = random.choice((4, 8))
    value = random.choice((2**31 - 1, 2**32 - 1, 2**62, 2**63 - 1, 0)) % 2 ** (8 * width)
    data[offset : offset + width] = value.to_bytes(width, random.choice(("little", "big")))


MUTATIONS = (flip, overwrite, cut, insert, remove, repeat, huge)


def damaged(content, random):
    """Return bytes with one to three mutations."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        if data:
            random.choice(MUTATIONS)(data, random)
    return bytes(data)
