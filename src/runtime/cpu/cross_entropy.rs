//! Cross-entropy, plain and fused with the output projection.
//!
//! `torch.nn.functional.cross_entropy`, mean over the labels that are not [`IGNORE`]. The fused form multiplies only labelled rows, in
//! chunks, so that no `[rows, vocabulary]` tensor exists; the head is frozen.

use super::gemm::{Mat, MatMut, Precision, Rhs, Term, gemm_sum_in};
use super::scratch::with_scratch;
use super::softmax::{exponentials_row, scale_row, sum_of_exponentials};
use super::{KernelError, Result, check_dim, check_len, product};
use rayon::prelude::*;

/// The label of a position that does not count.
pub const IGNORE: i64 = -100;

/// Logits of a chunk.
const CHUNK: usize = 1 << 24;

/// A summed loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// Sum of `-ln p(label)` over the labels that count.
    pub sum: f64,
    /// How many count.
    pub count: usize,
}

impl Loss {
    /// The mean; 0 if nothing counts.
    pub fn mean(&self) -> f64 {
        if self.count == 0 {
            0.0
        } else {
            self.sum / self.count as f64
        }
    }
}

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

/// Loss of `logits`, `[labels.len(), vocabulary]`; with `grad`, also `scale * d sum / d logits`, zero on ignored rows.
///
/// For the gradient of the mean, `scale` is `1 / count`.
pub fn cross_entropy(
    logits: &[f32],
    vocabulary: usize,
    labels: &[i64],
    scale: f32,
    grad: Option<&mut [f32]>,
) -> Result<Loss> {
    check_len(
        "logits",
        logits.len(),
        product("logits", &[labels.len(), vocabulary])?,
    )?;
    let targets = targets(labels, vocabulary)?;
    let count = targets.iter().flatten().count();
    if vocabulary == 0 {
        return Ok(Loss { sum: 0.0, count });
    }
    let losses: Vec<f64> = if let Some(grad) = grad {
        check_len("gradient of the logits", grad.len(), logits.len())?;
        let rows = grad
            .par_chunks_mut(vocabulary)
            .zip(logits.par_chunks(vocabulary));
        rows.zip(&targets)
            .map(|((grad, logits), target)| {
                let Some(target) = *target else {
                    grad.fill(0.0);
                    return 0.0;
                };
                grad.copy_from_slice(logits);
                row_gradient(grad, target, scale)
            })
            .collect()
    } else {
        let rows = logits.par_chunks(vocabulary).zip(&targets);
        rows.map(|(logits, target)| target.map_or(0.0, |target| row_loss(logits, target)))
            .collect()
    };
    Ok(Loss {
        sum: losses.iter().sum(),
        count,
    })
}

fn row_loss(row: &[f32], target: usize) -> f64 {
    let (max, sum) = sum_of_exponentials(row);
    loss(max, sum, row[target])
}

/// The loss of one row, which it overwrites with `scale * (softmax - onehot)`.
fn row_gradient(row: &mut [f32], target: usize, scale: f32) -> f64 {
    let wanted = row[target];
    let (max, sum) = exponentials_row(row);
    scale_row(row, scale / sum);
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
    fn multiply(&self, x: Mat<'_>, turned: bool, out: MatMut<'_>) -> Result<()> {
        let term = Term {
            trans_b: self.transposed != turned,
            ..Term::new(x, self.weight)
        };
        gemm_sum_in(self.precision, &[term], false, out)
    }
}

/// Loss of `hidden · head`, without the logits; with `grad`, also `scale * d sum / d hidden`, `[rows, width]`, zero on ignored rows.
///
/// `hidden` is `[labels.len(), width]`. A `scale` of `None` means `1 / count`, the gradient of the mean. Memory beside the operands:
/// one chunk of logits.
pub fn linear_cross_entropy(
    hidden: &[f32],
    width: usize,
    head: Head<'_>,
    labels: &[i64],
    scale: Option<f32>,
    mut grad: Option<&mut [f32]>,
) -> Result<Loss> {
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
    let scale = scale.unwrap_or(1.0 / count.max(1) as f32);
    if let Some(grad) = grad.as_deref_mut() {
        grad.fill(0.0);
    }
    // Chunks of equal size: each reads the whole head.
    let most = (CHUNK / vocabulary.max(1)).max(12);
    let step = count.div_ceil(count.div_ceil(most).max(1)).max(1);
    let mut sum = 0.0;
    for chunk in labelled.chunks(step) {
        sum += chunk_loss(hidden, head, chunk, scale, grad.as_deref_mut())?;
    }
    Ok(Loss { sum, count })
}

/// One chunk of labelled rows: gather, multiply, loss, multiply back, scatter.
fn chunk_loss(
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
            Mat::new(packed, n, width)?,
            false,
            MatMut::new(logits, n, vocabulary)?,
        )?;
        let losses: Vec<f64> = logits
            .par_chunks_mut(vocabulary.max(1))
            .zip(chunk)
            .map(|(row, &(_, target))| {
                if want_grad {
                    row_gradient(row, target, scale)
                } else {
                    row_loss(row, target)
                }
            })
            .collect();
        if let Some(grad) = grad {
            head.multiply(
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
    use crate::runtime::cpu::gemm::{DType, WeightRef};
    use crate::runtime::cpu::testing::{close, gradient, values, wide};

    fn naive(logits: &[f64], vocabulary: usize, labels: &[i64]) -> f64 {
        let rows = logits.chunks(vocabulary).zip(labels);
        rows.filter(|(_, label)| **label != IGNORE)
            .map(|(row, &label)| {
                row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[label as usize]
            })
            .sum()
    }

    #[test]
    fn loss_and_gradient_of_logits() {
        let (labels, vocabulary) = ([3, IGNORE, 0, 36], 37);
        let logits: Vec<f32> = values(4 * vocabulary, 1).iter().map(|v| v * 4.0).collect();
        let wanted = naive(&wide(&logits), vocabulary, &labels);
        let mut grad = vec![9.0; logits.len()];
        for grad in [None, Some(&mut grad[..])] {
            let loss = cross_entropy(&logits, vocabulary, &labels, 0.5, grad).unwrap();
            assert_eq!(loss.count, 3);
            assert!((loss.sum - wanted).abs() < 1e-5 && (loss.mean() - wanted / 3.0).abs() < 1e-5);
        }
        let wanted = gradient(&wide(&logits), |x| 0.5 * naive(x, vocabulary, &labels));
        // Two roundings of probabilities below 1.
        close(&grad, &wanted, 1e-6);
        assert_eq!(grad[vocabulary..2 * vocabulary], [0.0; 37]);
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
            let mut grad = vec![9.0; hidden.len()];
            let loss =
                linear_cross_entropy(&hidden, width, head, &labels, None, Some(&mut grad)).unwrap();
            assert_eq!(loss.count, 3);
            assert!((loss.sum - composed(&wide(&hidden))).abs() < 1e-5);
            close(
                &grad,
                &gradient(&wide(&hidden), |x| composed(x) / 3.0),
                2e-6,
            );
            let only = linear_cross_entropy(&hidden, width, head, &labels, None, None).unwrap();
            assert!((only.sum - loss.sum).abs() < 1e-5);
        }
    }

    #[test]
    fn nothing_labelled_is_no_loss_and_wrong_labels_are_errors() {
        let logits = [0.0; 6];
        let mut grad = [1.0; 6];
        let loss = cross_entropy(&logits, 3, &[IGNORE; 2], 1.0, Some(&mut grad)).unwrap();
        assert_eq!((loss.mean(), grad), (0.0, [0.0; 6]));
        for label in [3, -1] {
            let wrong = cross_entropy(&logits, 3, &[0, label], 1.0, None);
            assert_eq!(
                wrong,
                Err(KernelError::Index {
                    what: "label",
                    index: label,
                    bound: 3
                })
            );
        }
        assert!(cross_entropy(&logits, 4, &[0, 0], 1.0, None).is_err());
    }
}
