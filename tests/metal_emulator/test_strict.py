"""Planted mistakes: what Apple's compiler rejects is rejected here, and what it takes, taken."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from tests.metal_emulator import Argument, Kernel, check

BEGIN = "uint i = thread_position_in_grid.x; uint lane = thread_index_in_simdgroup;\n"


class Case(NamedTuple):
    """A body, and part of the message it must draw (None: it is fine)."""

    body: str
    message: str | None
    header: str = ""
    dtype: str = "float32"
    output_dtype: str | None = None
    template: tuple[tuple[str, Any], ...] = ()
    atomic: bool = False
    size: int = 1024


SPACE = "address space"
CASES = {
    "clean kernel": Case(
        "threadgroup float t[64]; t[lane] = a[i];"
        "threadgroup_barrier(mem_flags::mem_threadgroup);"
        "float4 v = float4(1, 2, 3, 4); half4 h = half4(v);"
        "b[i] = simd_sum(t[lane]) + dot(v, float4(h));",
        None,
    ),
    "clean helpers over address spaces": Case(
        "b[i] = load(a, i) + first((const device float4*)a).x;",
        None,
        header="template <typename P> inline float load(P p, uint i) { return p[i]; }\n"
        "inline float4 first(const device float4* p) { return *p; }\n"
        "constant constexpr int KS = 7;\n"
        "struct S { float m; thread float* p; void f(thread float& x) thread { x += m; } };",
    ),
    "clean half output of a float": Case("b[i] = a[i] * 2.0f;", None, output_dtype="float16"),
    "clean threadgroup array with initialiser": Case(
        "threadgroup float t[4] = {0}; b[i] = t[0];", None
    ),
    "clean call of another function": Case(
        "b[i] = f(3);",
        None,
        header="inline float g(int n) { return n; }\ninline float f(int n) { return g(n - 1); }",
    ),
    # address spaces
    "local pointer": Case("const float* p = a; b[i] = p[i];", SPACE),
    "pointer parameter": Case(
        "b[i] = f(a);", SPACE, header="inline float f(const float* p) { return p[0]; }"
    ),
    "pointer to a thread's own variable": Case("float x = 1; float* p = &x; b[i] = *p;", SPACE),
    "pointer in a struct": Case("S s; b[i] = 0;", SPACE, header="struct S { float* p; };"),
    "pointer returned": Case(
        "b[i] = 0;", SPACE, header="inline float* f(thread float* p) { return p; }"
    ),
    "alias of a pointer": Case("using P = float*; b[i] = 0;", SPACE),
    "cast": Case("float4 v = *((float4*)(a + i)); b[i] = v.x;", SPACE),
    "reference parameter": Case(
        "float x = 1; f(x); b[i] = x;", SPACE, header="inline void f(float& x) { x = 2; }"
    ),
    "device passed as thread": Case(
        "b[i] = f(a);", "no matching", header="inline float f(const thread float* p) { return *p; }"
    ),
    "device assigned to threadgroup": Case(
        "threadgroup float t[4]; threadgroup float* p = t; p = b; b[i] = *p;",
        "changes address space",
    ),
    "small input passed as device": Case(
        "b[i] = f(a);",
        "no matching",
        header="inline float f(const device float* p) { return p[0]; }",
        size=3,
    ),
    "threadgroup cast to device": Case(
        "threadgroup float t[4]; device float* p = (device float*)t; b[i] = p[0];",
        "mismatching address spaces",
    ),
    "method of a thread called on device": Case(
        "b[i] = ((const device S*)a)[i].get();",
        "cannot initialize object parameter",
        header="struct S { float x; float get() const thread { return x; } };",
    ),
    "write to an input": Case("a[i] = 1; b[i] = 0;", "read-only"),
    # vectors and conversions
    "half4 to float4": Case("half4 h = half4(1); float4 v = h; b[i] = v.x;", "cannot initialize"),
    "int4 to float4": Case("int4 v = int4(1); float4 w = v; b[i] = w.x;", "cannot initialize"),
    "float3 plus float4": Case(
        "float3 x = float3(1); float4 y = float4(2); b[i] = (x + y).x;", "vector types"
    ),
    "too few components": Case("float4 v = float4(1, 2, 3); b[i] = v.x;", "component count"),
    "comparison of vectors as a condition": Case(
        "float4 v = float4(a[i]); if (v == float4(0)) b[i] = 1;", "contextually convertible"
    ),
    "float to bfloat": Case("float x = a[i]; b[i] = x * 2.0f;", "bfloat", output_dtype="bfloat16"),
    "int to bfloat": Case("int x = i; b[i] = x;", "bfloat", output_dtype="bfloat16"),
    "double": Case("double x = a[i]; b[i] = x;", "double"),
    # overloads and names
    "max of float and int": Case("b[i] = max(a[i], 0);", "ambiguous"),
    "min of uint and int": Case("b[i] = a[min(i, 1023)];", "ambiguous"),
    "clamp of float by ints": Case("b[i] = clamp(a[i], -1, 1);", "ambiguous"),
    "function of CUDA": Case("b[i] = __expf(a[i]);", "undeclared"),
    "namespace std": Case("b[i] = std::exp(a[i]);", "undeclared"),
    "erf": Case("b[i] = erf(a[i]);", "undeclared"),
    "own max beside Metal's": Case(
        "b[i] = max(a[i], 1.0f);",
        "ambiguous",
        header="inline float max(float a, float b) { return a > b ? a : b; }",
    ),
    "attribute that does not exist": Case("b[i] = a[simd_lane_id];", "undeclared"),
    "attribute named only in a macro": Case(
        "b[i] = a[LANE];",
        "undeclared identifier 'simdgroup_index_in_threadgroup'",
        header="#define LANE simdgroup_index_in_threadgroup",
    ),
    "barrier without flags": Case("threadgroup_barrier(); b[i] = a[i];", "no matching"),
    "flags without their scope": Case(
        "threadgroup_barrier(mem_threadgroup); b[i] = a[i];", "undeclared"
    ),
    # storage
    "threadgroup variable in a function": Case(
        "b[i] = f(a[i]);",
        "local address space",
        header="inline float f(float x) { threadgroup float t[32]; t[0] = x; return t[0]; }",
    ),
    "constexpr of program scope": Case(
        "b[i] = a[i] * KS;", "program scope", header="constexpr int KS = 7;"
    ),
    "array of program scope": Case(
        "b[i] = a[i] * tab[i % 4];", "program scope", header="const float tab[4] = {1, 2, 3, 4};"
    ),
    "static variable": Case("static int n = 0; n++; b[i] = n;", "static variable"),
    "array of variable length": Case(
        "int n = i % 4 + 1; float t[n]; t[0] = a[i]; b[i] = t[0];", "not a constant"
    ),
    # library
    "shuffle of 64 bits": Case("long x = i; b[i] = metal::simd_shuffle(x, (ushort)0);", "bfloat"),
    "reduction of 64 bits": Case("long x = i; b[i] = simd_sum(x);", ""),
    "atomic of half": Case(
        "atomic_fetch_add_explicit(&b[i], (half)1, memory_order_relaxed);",
        "metal::atomic",
        output_dtype="float16",
        atomic=True,
    ),
    "plain store to an atomic": Case("b[i] = a[i];", "no viable overloaded '='", atomic=True),
    "atomic operation on plain memory": Case(
        "atomic_fetch_add_explicit(b + i, 1.0f, memory_order_relaxed);", "no matching"
    ),
    "simdgroup_matrix of 16x16": Case("simdgroup_matrix<float, 16, 16> m; b[i] = 0;", "only 8x8"),
    "simdgroup_matrix of int": Case("simdgroup_matrix<int, 8, 8> m; b[i] = 0;", "element must be"),
    "simdgroup_load from a thread's memory": Case(
        "float x[64]; simdgroup_float8x8 m; simdgroup_load(m, x, 8); b[i] = x[0];", "no matching"
    ),
    # language
    "recursion": Case(
        "b[i] = f(3);", "recursion", header="inline float f(int n) { return n ? f(n - 1) : 0.0f; }"
    ),
    "recursion through two functions": Case(
        "b[i] = f(3);",
        "recursion",
        header="inline float g(int n);\n"
        "inline float f(int n) { return n ? g(n - 1) : 0.0f; }\n"
        "inline float g(int n) { return f(n); }",
    ),
    "new": Case("int* p = new int[3]; b[i] = p[0];", "new"),
    "virtual function": Case(
        "b[i] = 0;", "virtual", header="struct S { virtual float f() { return 0; } };"
    ),
    "exception": Case("throw 1;", "exceptions"),
    "goto": Case("goto end; end: b[i] = 0;", "goto"),
    "function pointer": Case(
        "float (*g)(float) = f; b[i] = g(a[i]);",
        "pointers to functions",
        header="inline float f(float x) { return x; }",
    ),
    "lambda": Case("auto f = [&](float x) { return x * 2; }; b[i] = f(a[i]);", "lambda"),
    "missing semicolon": Case("b[i] = a[i]", "expected ';'"),
    "type compared as a value": Case(
        "if (T == float) b[i] = 0;", "expected", template=(("T", "float32"),)
    ),
    "static_assert on a template value": Case(
        'static_assert(D % 32 == 0, "D"); b[i] = a[i];', "static assertion", template=(("D", 33),)
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_planted_mistake(case: Case) -> None:
    kernel = Kernel(
        name="planted",
        source=BEGIN + case.body,
        header=case.header,
        inputs=(Argument("a", case.dtype, (case.size,)),),
        outputs=(Argument("b", case.output_dtype or case.dtype, (1024,)),),
        template=case.template,
        atomic_outputs=case.atomic,
    )
    errors = check(kernel).errors
    if case.message is None:
        assert not errors, errors[0]
    else:
        assert any(case.message in str(e) for e in errors), errors


def test_place_of_a_mistake() -> None:
    """An error names the line of the body or the header, through macros and templates."""
    kernel = Kernel(
        name="planted",
        source="uint i = thread_position_in_grid.x;\n\nb[i] = twice(a[i]) + ;",
        header="template <typename T> T twice(T x) {\n  T* p = &x;\n  return *p * 2;\n}",
        inputs=(Argument("a", "float32", (64,)),),
        outputs=(Argument("b", "float32", (64,)),),
    )
    places = {e.place for e in check(kernel).errors}
    assert places == {"header.metal:2", "body.metal:3"}


def test_lambdas_from_metal_4_on() -> None:
    kernel = Kernel(
        name="planted",
        source="uint i = thread_position_in_grid.x; auto f = [&](float x) { return x; }; "
        "b[i] = f(a[i]);",
        header="",
        inputs=(Argument("a", "float32", (64,)),),
        outputs=(Argument("b", "float32", (64,)),),
    )
    assert not check(kernel, metal_version=400).errors


def test_warning_of_an_uninitialised_variable() -> None:
    kernel = Kernel(
        name="planted",
        source="uint i = thread_position_in_grid.x; float x; if (i > 3) x = 1; b[i] = x + a[i];",
        header="",
        inputs=(Argument("a", "float32", (64,)),),
        outputs=(Argument("b", "float32", (64,)),),
    )
    assert any("uninitialized" in w.message for w in check(kernel).warnings)
