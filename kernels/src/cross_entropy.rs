//! Cross-entropy, fused with the output projection.
//!
//! `torch.nn.functional.cross_entropy` of the labels that are not [`IGNORE`]. Only labelled rows are multiplied, in chunks, so that no
//! `[rows, vocabulary]` tensor exists; the head is frozen.

use crate::gemm::{Mat, MatMut, Precision, Rhs, Term, gemm_on};
use crate::isa::Isa;
use crate::scratch::with_scratch;
use crate::softmax::{exponentials_row, scale_row, sum_of_exponentials};
use crate::team;
use crate::{KernelError, Result, check_dim, check_len, product};

/// The label of a position that does not count.
pub const IGNORE: i64 = -100;

/// Logits of a chunk.
const CHUNK: usize = 1 << 24;

/// Labels as vocabulary rows, `None` where ignored.
fn targets(labels: &[i64], vocabulary: usize) -> Result<Vec<Option<usize>>> {
    labels
        .iter()
        .map(|&label| match usize::try_from(label) {
            _ if label == IGNORE => Ok(None),
            Ok(index) if index < vocabulary => Ok(Some(index)),
            _ => Err(KernelError::Index {
                what: "label",
                index: label,
                bound: vocabulary,
            }),
        })
        .collect()
}

fn row_loss(isa: Isa, row: &[f32], target: usize) -> f64 {
    let (max, sum) = sum_of_exponentials(isa, row);
    loss(max, sum, row[target])
}

/// The loss of one row, which it overwrites with `scale * (softmax - onehot)`.
fn row_gradient(isa: Isa, row: &mut [f32], target: usize, scale: f32) -> f64 {
    let wanted = row[target];
    let (max, sum) = exponentials_row(isa, row);
    scale_row(isa, row, scale / sum);
    row[target] -= scale;
    loss(max, sum, wanted)
}

fn loss(max: f32, sum: f32, wanted: f32) -> f64 {
    f64::from(max) + f64::from(sum).ln() - f64::from(wanted)
}

/// A frozen output projection.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// The weight, `[width, vocabulary]`, or `[vocabulary, width]` if `transposed`.
    pub weight: Rhs<'a>,
    /// Whether the vocabulary is the first axis.
    pub transposed: bool,
    /// Precision of its products.
    pub precision: Precision,
}

impl Head<'_> {
    /// Width of the hidden states, and vocabulary.
    fn dims(&self) -> (usize, usize) {
        let (rows, cols) = self.weight.dims();
        if self.transposed {
            (cols, rows)
        } else {
            (rows, cols)
        }
    }

    /// `out = x · weight`, or `x · weightᵀ` if `turned`.
    fn multiply(&self, isa: Isa, x: Mat<'_>, turned: bool, out: MatMut<'_>) -> Result<()> {
        let term = Term {
            trans_b: self.transposed != turned,
            ..Term::new(x, self.weight)
        };
        gemm_on(isa, self.precision, &[term], false, out)
    }
}

/// Summed loss of `hidden · head` over the labels that count, without the logits; with `grad`, also `scale * d sum / d hidden`,
/// `[rows, width]`, zero on ignored rows.
///
/// `hidden` is `[labels.len(), width]`. Memory beside the operands: one chunk of logits.
pub fn linear_cross_entropy(
    hidden: &[f32],
    width: usize,
    head: Head<'_>,
    labels: &[i64],
    scale: f32,
    grad: Option<&mut [f32]>,
) -> Result<f64> {
    loss_on(Isa::detect(), (hidden, width), head, labels, scale, grad)
}

fn loss_on(
    isa: Isa,
    (hidden, width): (&[f32], usize),
    head: Head<'_>,
    labels: &[i64],
    scale: f32,
    mut grad: Option<&mut [f32]>,
) -> Result<f64> {
    check_len(
        "hidden states",
        hidden.len(),
        product("hidden states", &[labels.len(), width])?,
    )?;
    check_len(
        "gradient",
        grad.as_deref().map_or(hidden.len(), <[f32]>::len),
        hidden.len(),
    )?;
    let (depth, vocabulary) = head.dims();
    check_dim("depth of the head", depth, width)?;
    let labelled: Vec<(usize, usize)> = targets(labels, vocabulary)?
        .into_iter()
        .enumerate()
        .filter_map(|(row, target)| target.map(|target| (row, target)))
        .collect();
    let count = labelled.len();
    if let Some(grad) = grad.as_deref_mut() {
        grad.fill(0.0);
    }
    // Chunks of equal size: each reads the whole head.
    let most = (CHUNK / vocabulary.max(1)).max(12);
    let step = count.div_ceil(count.div_ceil(most).max(1)).max(1);
    let mut sum = 0.0;
    for chunk in labelled.chunks(step) {
        sum += chunk_loss(isa, hidden, head, chunk, scale, grad.as_deref_mut())?;
    }
    Ok(sum)
}

/// One chunk of labelled rows: gather, multiply, loss, multiply back, scatter.
fn chunk_loss(
    isa: Isa,
    hidden: &[f32],
    head: Head<'_>,
    chunk: &[(usize, usize)],
    scale: f32,
    grad: Option<&mut [f32]>,
) -> Result<f64> {
    let (n, (width, vocabulary)) = (chunk.len(), head.dims());
    let want_grad = grad.is_some();
    with_scratch(n * (width + vocabulary), |space| {
        let (packed, logits) = space.split_at_mut(n * width);
        for (out, &(row, _)) in packed.chunks_exact_mut(width.max(1)).zip(chunk) {
            out.copy_from_slice(&hidden[row * width..][..width]);
        }
        head.multiply(
            isa,
            Mat::new(packed, n, width)?,
            false,
            MatMut::new(logits, n, vocabulary)?,
        )?;
        let rows = logits.chunks_mut(vocabulary.max(1)).zip(chunk);
        let losses = team::map(rows, |(row, &(_, target))| {
            if want_grad {
                row_gradient(isa, row, target, scale)
            } else {
                row_loss(isa, row, target)
            }
        });
        if let Some(grad) = grad {
            head.multiply(
                isa,
                Mat::new(logits, n, vocabulary)?,
                true,
                MatMut::new(packed, n, width)?,
            )?;
            for (from, &(row, _)) in packed.chunks_exact(width.max(1)).zip(chunk) {
                grad[row * width..][..width].copy_from_slice(from);
            }
        }
        Ok(losses.iter().sum())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::gemm::WeightRef;
    use crate::testing::{close, gradient, values, wide};

    fn naive(logits: &[f64], vocabulary: usize, labels: &[i64]) -> f64 {
        let rows = logits.chunks(vocabulary).zip(labels);
        rows.filter(|(_, label)| **label != IGNORE)
            .map(|(row, &label)| {
                row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[label as usize]
            })
            .sum()
    }

    #[test]
    fn the_fused_form_equals_the_composition() {
        let (width, vocabulary) = (9, 41);
        let labels = [IGNORE, 40, 7, IGNORE, 0];
        let hidden = values(labels.len() * width, 1);
        let stored: Vec<half::bf16> = values(width * vocabulary, 2)
            .iter()
            .map(|&v| half::bf16::from_f32(v))
            .collect();
        let bytes: Vec<u8> = stored.iter().flat_map(|v| v.to_le_bytes()).collect();
        for trans in [false, true] {
            let (rows, cols) = if trans {
                (vocabulary, width)
            } else {
                (width, vocabulary)
            };
            let weight = WeightRef::new(DType::Bf16, &bytes, rows, cols)
                .unwrap()
                .into();
            let head = Head {
                weight,
                transposed: trans,
                precision: Precision::F32,
            };
            let at = |d: usize, v: usize| {
                f64::from(
                    stored[if trans {
                        v * width + d
                    } else {
                        d * vocabulary + v
                    }]
                    .to_f32(),
                )
            };
            let composed = |hidden: &[f64]| {
                let logits: Vec<f64> = hidden
                    .chunks(width)
                    .flat_map(|h| {
                        (0..vocabulary)
                            .map(move |v| h.iter().enumerate().map(|(d, h)| h * at(d, v)).sum())
                    })
                    .collect();
                naive(&logits, vocabulary, &labels)
            };
            let third = 1.0 / 3.0;
            let wanted = gradient(&wide(&hidden), |x| composed(x) / 3.0);
            for isa in Isa::all() {
                let mut grad = vec![9.0; hidden.len()];
                let hidden_in = (&hidden[..], width);
                let loss = loss_on(isa, hidden_in, head, &labels, third, Some(&mut grad)).unwrap();
                assert!((loss - composed(&wide(&hidden))).abs() < 1e-5);
                close(&grad, &wanted, 2e-6);
                assert_eq!(grad[..width], [0.0; 9]);
                let only = loss_on(isa, hidden_in, head, &labels, third, None).unwrap();
                assert!((only - loss).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn nothing_labelled_is_no_loss_and_wrong_labels_are_errors() {
        let (hidden, weight) = ([1.0; 4], [1.0; 6]);
        let head = Head {
            weight: Mat::new(&weight, 2, 3).unwrap().into(),
            transposed: false,
            precision: Precision::F32,
        };
        let mut grad = [1.0; 4];
        let loss = linear_cross_entropy(&hidden, 2, head, &[IGNORE; 2], 1.0, Some(&mut grad));
        assert_eq!((loss, grad), (Ok(0.0), [0.0; 4]));
        for label in [3, -1] {
            let wrong = linear_cross_entropy(&hidden, 2, head, &[0, label], 1.0, None);
            assert_eq!(
                wrong,
                Err(KernelError::Index {
                    what: "label",
                    index: label,
                    bound: 3
                })
            );
        }
        assert!(linear_cross_entropy(&hidden, 3, head, &[0, 0], 1.0, None).is_err());
    }
}
