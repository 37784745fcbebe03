"""cuBLASLt's proposals for a product, one after the other, by its C interface: PyTorch takes the first. No proposal may reduce over a split K.
The library is the one that torch has loaded. Numbers are those of cublasLt.h and library_types.h of CUDA 13."""

import ctypes

COMPUTE_32F, R_32F, R_16BF, OP_T = 68, 0, 14, 1
DESC_TRANSA, PREF_WORKSPACE, PREF_REDUCTION_MASK, REDUCTION_NONE = 3, 1, 3, 0
WORKSPACE = 32 << 20


class Algorithm(ctypes.Structure):
    _fields_ = [("data", ctypes.c_uint64 * 8)]


class Heuristic(ctypes.Structure):
    _fields_ = [("algorithm", Algorithm), ("workspace", ctypes.c_size_t), ("state", ctypes.c_int), ("waves", ctypes.c_float),
                ("reserved", ctypes.c_int * 4)]


def check(status, what):
    if status:
        raise RuntimeError(f"cublasLt{what}: status {status}")


def proposals(lt, M, N, K, most):
    """Handles and descriptions of out (M, N) = a (M, K) w (N, K)^T, row by row, and the algorithms proposed. cuBLASLt counts by columns, so it
    multiplies w by a."""
    handle, desc, preference = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    check(lt.cublasLtCreate(ctypes.byref(handle)), "Create")
    check(lt.cublasLtMatmulDescCreate(ctypes.byref(desc), COMPUTE_32F, R_32F), "MatmulDescCreate")
    transpose = ctypes.c_int32(OP_T)
    check(lt.cublasLtMatmulDescSetAttribute(desc, DESC_TRANSA, ctypes.byref(transpose), ctypes.c_size_t(4)), "MatmulDescSetAttribute")
    layouts = []
    for rows, columns in ((K, N), (K, M), (N, M)):
        layout = ctypes.c_void_p()
        check(lt.cublasLtMatrixLayoutCreate(ctypes.byref(layout), R_16BF, ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(rows)),
              "MatrixLayoutCreate")
        layouts.append(layout)
    check(lt.cublasLtMatmulPreferenceCreate(ctypes.byref(preference)), "MatmulPreferenceCreate")
    for attribute, value in ((PREF_WORKSPACE, ctypes.c_uint64(WORKSPACE)), (PREF_REDUCTION_MASK, ctypes.c_uint32(REDUCTION_NONE))):
        check(lt.cublasLtMatmulPreferenceSetAttribute(preference, attribute, ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value))),
              "MatmulPreferenceSetAttribute")
    found, count = (Heuristic * most)(), ctypes.c_int()
    weights, inputs, outputs = layouts
    check(lt.cublasLtMatmulAlgoGetHeuristic(handle, desc, weights, inputs, outputs, outputs, preference, most, found, ctypes.byref(count)),
          "MatmulAlgoGetHeuristic")
    return handle, desc, layouts, [entry for entry in found[:count.value] if entry.state == 0]


def best_of(torch, clock, a, w, most):
    """Milliseconds of the first and the best of `most` proposals for a (M, K) w (N, K)^T, both bf16 on the card; each result is checked."""
    lt = ctypes.CDLL("libcublasLt.so.13")
    (M, K), N = a.shape, w.shape[0]
    handle, desc, (weights, inputs, outputs), found = proposals(lt, M, N, K, most)
    out, space = torch.empty(M, N, dtype=torch.bfloat16, device=a.device), torch.empty(WORKSPACE, dtype=torch.uint8, device=a.device)
    one, zero = ctypes.c_float(1), ctypes.c_float(0)
    wanted, times = a.double() @ w.double().t(), []
    for entry in found:
        def product():
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            check(lt.cublasLtMatmul(handle, desc, ctypes.byref(one), pointer(w), weights, pointer(a), inputs, ctypes.byref(zero), pointer(out), outputs,
                                    pointer(out), outputs, ctypes.byref(entry.algorithm), pointer(space), ctypes.c_size_t(WORKSPACE), stream), "Matmul")

        out.fill_(float("nan"))
        clock.on_stream(product)
        clock.wait()
        off = ((out.double() - wanted).norm() / wanted.norm()).item()
        if not off < 1e-2:
            raise RuntimeError(f"proposal {len(times)} is off by {off:.3g}")
        times.append(clock.time(product, 3)[0])
    lt.cublasLtDestroy(handle)
    return {"first_ms": times[0], "best_ms": min(times), "best": times.index(min(times)), "proposals": len(times), "all_ms": times}


def pointer(tensor):
    return ctypes.c_void_p(tensor.data_ptr())
