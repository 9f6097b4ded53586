def test_a(tiny_dalle):
    r=tiny_dalle.generate("a red heart",candidates=5,keep=3)
    print(r, r[0].image.size)
    assert 0
