"""Families of values that people give by mistake, each value as the text that stands in a call."""

FAMILIES = {
    # Numbers in Python calls.
    "bool": ["True", "False"],
    "none": ["None"],
    "zero": ["0"],
    "negative": ["-1", "-(2**63)", "np.int64(-3)"],
    "huge": ["2**63", "10**30"],
    "not_whole": [
        "2.5", "float('nan')", "float('inf')", "1e20", "True", "'3'", "1j", "[1]", "{}", "b'1'", "np.float32(2)",
        "np.array([1, 2])", "object()",
    ],
    # Numbers that arithmetic takes without a word.
    "sly": ["True", "float('nan')", "float('inf')", "1e20", "2.5"],
    "not_number": [
        "float('nan')", "float('inf')", "-float('inf')", "True", "'0.5'", "1j", "[0.5]", "{}", "b'1'",
        "np.array([0.5, 0.5])", "object()",
    ],
    "not_finite": ["float('nan')", "float('inf')", "-float('inf')", "np.float32('nan')"],
    "not_positive": ["0.0", "-0.0", "-1.0", "-1e-30"],
    "not_text": ["None", "3", "2.5", "True", "b'2x2'", "['2x2']", "{}", "np.array(['2x2'])"],
    "not_array": ["None", "'abc'", "{}", "object()", "[[1.0], [1.0, 2.0]]", "np.array(['a'])", "np.array([None])",
                  "np.array([1j])"],
    "not_tuple": ["None", "3", "2.5", "'abc'", "{}", "()"],
    # Texts of codes and scales.
    "bad_code": [
        "''", "'2'", "'x2'", "'2x'", "'0x2'", "'2x0'", "'-1x2'", "'2x2x2'", "'2.0x2'", "'1x9'", "'300x1'", "'2x3/0'",
        "'2x3/4'", "'2x2+1'", "'2x2+0,1'", "'2x2+9,9'", "'2x2+-1,0'", "'２x２'", "'2x2\\n3'", "'1x9999999999999999999'",
        "'2x2[/x]'", "'9' * 5000",
    ],
    "bad_scale": [
        "''", "'block'", "'block0'", "'grid-1'", "'block2.5'", "'tile2'", "'block2x'", "'block0x2'", "'Block2'",
        "'block２'", "'block2x2x2'", "'block[2]'",
    ],
    # Arrays.
    "odd_dtype": [
        "'int8'", "'int16'", "'int32'", "'int64'", "'uint16'", "'uint32'", "'uint64'", "'bool'",
    ],
    "float_dtype": ["'float32'", "'float16'", "bf16"],
    "weird_dtype": ["'complex64'", "'object'", "'S1'", "'U1'", "'datetime64[s]'"],
    "current": [
        "0.0", "-0.0", "1e-45", "-1e-45", "1e-38", "0.5", "0.49999997", "2.5", "6.4999995", "6.5", "1e20", "-1e20",
        "3.4e38", "-3.4e38",
    ],
    "theta": ["1.0", "0.5", "0.3", "1e-3", "1e-20", "1e20", "3.0"],
    "code": ["'2x2'", "'1x4'", "'4x1'", "'2x3/1'", "'1x1'", "'2x2+2,0'", "'1x8'"],
    "seed": [str(i) for i in range(40)],
    # Images: what people hand a network that takes uint8, or floats in [0, 1].
    "wrong_image": [
        "images(dtype='int32')", "images(dtype='uint16')", "images(dtype='int64')", "images(dtype='int8')",
        "images(dtype='bool')", "images() * np.float32(1.0)", "images() / np.float32(127.5) - np.float32(1)",
        "images() * np.float32(np.nan)", "images().astype('complex64')", "images().astype('float64') + 0.5",
        "np.full((2, 8, 8, 1), np.inf, np.float32)", "np.full((2, 8, 8, 1), 255, np.float16)",
    ],
    "wrong_shape": [
        "images()[0]", "images()[..., 0]", "images((2, 1, 8, 8))", "images((2, 8, 8, 3))", "images((2, 9, 8, 1))",
        "images((2, 8, 8, 1, 1))", "images((8, 8, 1))", "images((128,))",
    ],
    "wrong_labels": [
        "[0]", "[0, 1, 2]", "[0, 10]", "[-1, 0]", "[0.5, 1.0]", "['a', 'b']", "[[0, 1]]", "np.eye(10)[:2]",
        "[None, None]", "[float('nan'), 0]", "np.array(3)", "[True, False]", "[2**40, 0]",
    ],
    "batch_size": ["0", "-1", "2.5", "True", "1e20", "None", "'64'", "float('nan')", "[64]"],
    # Files.
    "damage": ["'empty'", "'truncated'", "'binary'", "'list'", "'null'", "'keyless'", "'deep'"],
    "not_json": ["''", "'[]'", "'null'", "'{'", "'3'", "b'\\xff'", "'[' * 100_000"],
    "bits": ["17", "4321", "7000"],
    "broken_image": [
        "'truncated.png'", "'truncated.jpg'", "'empty.png'", "'text.png'", "'bomb.png'", "'chunk.png'", "'float.tif'",
        "'fifo.png'", "'folder.png'", "'loop.png'", "'dangling.png'",
    ],
    # Command lines.
    "text_not_whole": ["abc", "2.5", "nan", "inf", "1e20", "''", "True", "0x10", "'1 2'", "１２x"],
    "text_not_positive": ["0", "-1", "-9999999999999999999999"],
    "text_not_number": ["abc", "nan", "inf", "-inf", "''", "1e999", "True"],
    "odd_path": [
        "'nope'", "'no[/x]pe'", "'[red]nope'", "$'no\\npe'", "$'no\\x1b[31mpe'", "'~nobody-here/x'", "'no*pe'", "''",
        "/dev/null", "/dev/null/x", "$LOOP", "$LONG", "no\\ pe", "'-'", "nopé", "/proc/1/mem",
    ],
}  # fmt: skip
