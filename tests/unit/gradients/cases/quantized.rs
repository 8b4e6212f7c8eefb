//! Quantized operands. An input that is a code moves by whole steps, so that differences see the slope of what rounding makes stairs of.

use super::super::harness::{Case, op};
use onnx_graft::ir::{DType, TensorData};

pub(super) fn cases() -> Vec<Case> {
    [blocks(), codes(), integers()]
        .into_iter()
        .flatten()
        .collect()
}

fn scale(x: f32) -> TensorData {
    TensorData::from_f32([], &[x])
}

fn bytes(dtype: DType, dims: &[u64], data: &[i8]) -> TensorData {
    TensorData::raw(
        dtype,
        dims,
        data.iter().map(|&x| x as u8).collect::<Vec<_>>().into(),
    )
}

fn codes() -> Vec<Case> {
    let zero = |x: i8| bytes(DType::Int8, &[], &[x]);
    let wide = |x: i16| TensorData::raw(DType::Int16, [], x.to_le_bytes().to_vec().into());
    let by_row = TensorData::from_f32([2], &[0.01, 0.005]);
    vec![
        op("QuantizeLinear")
            .within(&[2, 3], -1.2, 1.2)
            .is(scale(0.01))
            .is(zero(3)),
        op("QuantizeLinear")
            .within(&[2, 3], -1.2, 1.2)
            .is(scale(0.01))
            .is(wide(-7)),
        op("QuantizeLinear")
            .within(&[2, 3, 2], -0.4, 0.4)
            .is(by_row.clone())
            .is(bytes(DType::Int8, &[2], &[1, -2]))
            .set("axis", 0i64),
        op("DequantizeLinear")
            .code(&[2, 3], 0.01, 3)
            .is(scale(0.2))
            .is(zero(3)),
        op("DequantizeLinear")
            .code(&[2, 3, 2], 0.01, 0)
            .is(by_row)
            .is(bytes(DType::Int8, &[2], &[1, -2]))
            .set("axis", 0i64),
    ]
}

/// A weight of small numbers, so that nothing leaves the range of a result.
fn weight(rows: u64, cols: u64) -> TensorData {
    let data: Vec<i8> = (0..rows * cols).map(|i| (i * 5 % 3) as i8 - 1).collect();
    bytes(DType::Int8, &[rows, cols], &data)
}

fn integers() -> Vec<Case> {
    let zero = |x: i8| bytes(DType::Int8, &[], &[x]);
    let quantum = scale(0.01);
    let same = |c: Case, slots: usize| {
        (0..slots).fold(c, |c, _| {
            c.is(scale(0.01)).is(bytes(DType::Int8, &[], &[0]))
        })
    };
    let ms = |name| op(name).code(&[2, 3], 0.01, 2).is(scale(0.01)).is(zero(2));
    let pair = |name| {
        let first = op(name).code(&[2, 3], 0.01, 0).is(scale(0.01)).is(zero(0));
        first.code(&[3], 0.01, 0).is(scale(0.01)).is(zero(0))
    };
    vec![
        op("MatMulInteger")
            .code(&[2, 3], 0.01, 2)
            .is(weight(3, 4))
            .is(zero(2))
            .is(zero(1)),
        op("MatMulInteger")
            .code(&[2, 2, 3], 0.01, 0)
            .is(weight(3, 2))
            .none()
            .is(bytes(DType::Int8, &[2], &[1, -1])),
        op("MatMulInteger")
            .code(&[2, 2, 3], 0.01, 0)
            .code(&[2, 3, 2], 0.01, 1)
            .none()
            .is(zero(1)),
        op("ConvInteger")
            .code(&[1, 2, 4], 0.01, 1)
            .is(bytes(
                DType::Int8,
                &[3, 2, 2],
                &[1, -1, 0, 1, 1, 0, -1, 1, 0, 1, 1, 1],
            ))
            .is(zero(1)),
        op("com.microsoft::MatMulIntegerToFloat")
            .code(&[2, 3], 0.01, 2)
            .is(weight(3, 4))
            .is(quantum.clone())
            .is(TensorData::from_f32([4], &[0.5, 1.0, 2.0, 0.1]))
            .is(zero(2))
            .is(zero(1))
            .x(&[4]),
        op("QLinearMatMul")
            .code(&[2, 3], 0.01, 2)
            .is(quantum.clone())
            .is(zero(2))
            .is(weight(3, 4))
            .is(scale(1.0))
            .is(zero(0))
            .is(quantum.clone())
            .is(zero(1)),
        op("QLinearConv")
            .code(&[1, 1, 4], 0.01, 0)
            .is(quantum.clone())
            .is(zero(0))
            .is(bytes(DType::Int8, &[2, 1, 2], &[1, -1, 0, 1]))
            .is(scale(1.0))
            .is(zero(0))
            .is(quantum.clone())
            .is(zero(0)),
        op("com.microsoft::QGemm")
            .code(&[2, 3], 0.01, 2)
            .is(quantum.clone())
            .is(zero(2))
            .is(weight(4, 3))
            .is(scale(1.0))
            .is(zero(0))
            .is(TensorData::raw(
                DType::Int32,
                [4],
                [1i32, 0, 2, 5]
                    .iter()
                    .flat_map(|x| x.to_le_bytes())
                    .collect::<Vec<_>>()
                    .into(),
            ))
            .set("transB", 1i64),
        same(
            op("com.microsoft::QLinearAdd")
                .code(&[2, 3], 0.01, 0)
                .is(quantum.clone())
                .is(zero(0))
                .code(&[3], 0.01, 0),
            2,
        ),
        pair("com.microsoft::QLinearMul")
            .is(scale(1e-4))
            .is(zero(0)),
        op("com.microsoft::QLinearWhere")
            .bools(&[3], &[1, 0, 1])
            .code(&[2, 3], 0.01, 0)
            .is(quantum.clone())
            .is(zero(0))
            .code(&[2, 3], 0.01, 1)
            .is(quantum.clone())
            .is(zero(1))
            .is(quantum.clone())
            .is(zero(0)),
        op("com.microsoft::QLinearConcat")
            .is(quantum.clone())
            .is(zero(0))
            .code(&[2, 3], 0.01, 0)
            .is(quantum.clone())
            .is(zero(0))
            .code(&[2, 1], 0.01, 1)
            .is(quantum.clone())
            .is(zero(1))
            .set("axis", 1i64),
        ms("com.microsoft::QLinearLeakyRelu")
            .is(quantum.clone())
            .is(zero(1))
            .set("alpha", 1.0f32),
        rough(ms("com.microsoft::QLinearSigmoid")),
        rough(ms("com.microsoft::QLinearSoftmax")).set("axis", 1i64),
        rough(ms("com.microsoft::QLinearReduceMean").set("axes", vec![1])),
        rough(
            op("com.microsoft::QLinearGlobalAveragePool")
                .code(&[1, 2, 3], 0.01, 2)
                .is(scale(0.01))
                .is(zero(2)),
        ),
        rough(
            op("com.microsoft::QLinearAveragePool")
                .code(&[1, 2, 4], 0.01, 2)
                .is(scale(0.01))
                .is(zero(2))
                .set("kernel_shape", vec![2]),
        ),
        Case {
            // What the attention itself rounds is nothing: only the operands are codes.
            tolerance: 1e-2,
            ..op("com.microsoft::QAttention")
                .code(&[1, 3, 4], 0.01, 0)
                .is(weight(4, 12))
                .x(&[12])
                .is(quantum.clone())
                .is(scale(0.5))
                .set("num_heads", 2i64)
        },
    ]
}

/// A result on 65,536 steps of its own: each may be half a step off, over a difference of 0.02.
fn rough(case: Case) -> Case {
    let zero = TensorData::raw(DType::Int16, [], 0i16.to_le_bytes().to_vec().into());
    Case {
        tolerance: 1e-2,
        ..case.is(scale(5e-5)).is(zero)
    }
}

fn blocks() -> Vec<Case> {
    let packed = |n: usize, blocks: usize, bytes: usize| {
        let data: Vec<u8> = (0..n * blocks * bytes)
            .map(|i| (i * 37 % 256) as u8)
            .collect();
        TensorData::raw(
            DType::Uint8,
            [n as u64, blocks as u64, bytes as u64],
            data.into(),
        )
    };
    let shape = |c: Case, bits: i64| {
        c.set("K", 20i64)
            .set("N", 3i64)
            .set("bits", bits)
            .set("block_size", 16i64)
    };
    let zeros = TensorData::raw(DType::Uint8, [3, 1], vec![0x87, 0x96, 0x79].into());
    let order: Vec<u8> = (0..20i32).flat_map(|i| (i % 2).to_le_bytes()).collect();
    let order = TensorData::raw(DType::Int32, [20], order.into());
    vec![
        shape(
            op("com.microsoft::MatMulNBits")
                .x(&[2, 20])
                .is(packed(3, 2, 8))
                .frozen(&[3, 2]),
            4,
        ),
        shape(
            op("com.microsoft::MatMulNBits")
                .x(&[2, 20])
                .is(packed(3, 2, 8))
                .frozen(&[3, 2])
                .is(zeros.clone()),
            4,
        ),
        // The block of each column, by number.
        shape(
            op("com.microsoft::MatMulNBits")
                .x(&[2, 20])
                .is(packed(3, 2, 8))
                .frozen(&[3, 2])
                .is(zeros.clone())
                .is(order.clone())
                .x(&[3]),
            4,
        ),
        shape(
            op("onnx_graft::DequantizeNBits")
                .is(packed(3, 2, 8))
                .x(&[3, 2])
                .is(zeros.clone())
                .is(order),
            4,
        ),
        // 33 numbers are three blocks of twelve.
        op("com.microsoft::MatMulBnb4")
            .x(&[2, 11])
            .is(TensorData::raw(
                DType::Uint8,
                [17],
                (0..17)
                    .map(|i| (i * 37 % 256) as u8)
                    .collect::<Vec<_>>()
                    .into(),
            ))
            .frozen(&[3])
            .set("K", 11i64)
            .set("N", 3i64)
            .set("block_size", 12i64)
            .set("quant_type", 1i64),
        // The weight alone, by its scales.
        shape(
            op("onnx_graft::DequantizeNBits")
                .is(packed(3, 2, 16))
                .x(&[3, 2]),
            8,
        ),
        shape(
            op("onnx_graft::DequantizeNBits")
                .is(packed(3, 2, 8))
                .x(&[3, 2])
                .is(zeros),
            4,
        ),
    ]
}
