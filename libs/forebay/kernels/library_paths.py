"""Keeps the libraries below torch to kernels that round a row alike whatever is computed beside it.

Import it before torch computes anything: both libraries read their environment once. What an operator has set stays.

oneDNN: its kernels for matrix tiles (AMX) choose their blocks by the number of rows; those of AVX-512 with bfloat16 do
not. MKL: on Intel's processors it takes other paths for some shapes than elsewhere, unless told to be strict; on
others' processors it ignores that, so it is not told.
"""

import os
from typing import Final

from forebay.host.cpu_model import is_intel

_ONEDNN: Final = ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
_MKL: Final = ("MKL_CBWR", "AVX512,STRICT")

for name, value in (_ONEDNN, _MKL) if is_intel() else (_ONEDNN,):
    os.environ.setdefault(name, value)
