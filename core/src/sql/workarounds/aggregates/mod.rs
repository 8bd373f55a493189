//! Corrected aggregates: sums that do not wrap, rounded averages of decimals, and extremes that order NaN.
//!
//! | function | DataFusion 55 | here |
//! |---|---|---|
//! | `sum(BIGINT)`, `sum(DECIMAL)` of more than 28 digits | wraps around | 22003 |
//! | `avg(DECIMAL)` | column's scale + 4, truncated | scale 16 or more, rounded |
//! | `min`, `max` of floats in groups | NaN counts or not, by row order | NaN is the greatest |
//! | `percentile_cont` | the weight between two values has six digits | as many as a DOUBLE |
//! | `sum`, `avg` and similar of floats over a moving frame | leaving rows are subtracted | recomputed |
//!
//! Each replaces DataFusion's function of that name for these types only.

mod adapted;
mod extremes;
mod frames;
mod percentile;
mod totals;

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Float32Type, Float64Type};
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::expr::{AggregateFunction, WindowFunction};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::{AggregateOrderSensitivity, format_state_name};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Expr, GroupsAccumulator, ReversedUDAF, Signature,
    Volatility, WindowFunctionDefinition,
};

use self::adapted::{by_frame, sorting};
use self::extremes::{Extreme, extremes};
use self::percentile::percentile;
use self::totals::{DistinctTotal, GroupAverages, GroupSums, Total, sum_type};
use super::operations::{AVERAGE_SCALE, DIGITS};
use super::walk::type_of;
use crate::error::Error;

/// Decimals of up to this precision need no checked sum: 10^10 of them fit 38 digits.
const SAFE_DIGITS: u8 = 28;

/// Replaces DataFusion's aggregates by the corrected ones.
pub(super) fn replace(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    match expr {
        Expr::AggregateFunction(call) => {
            let exact = call.params.args.first().and_then(|arg| exact(&call.func, arg, schema));
            let exact = exact.or_else(|| sorting(&call).or_else(|| percentile(&call)).map(Arc::new));
            Ok(match exact {
                Some(func) => Transformed::yes(Expr::AggregateFunction(AggregateFunction { func, ..call })),
                None => Transformed::no(Expr::AggregateFunction(call)),
            })
        }
        Expr::WindowFunction(call) => {
            let exact = match &call.fun {
                WindowFunctionDefinition::AggregateUDF(func) => call.params.args.first().and_then(|arg| {
                    let by_frame = || by_frame(func, &type_of(arg, schema)?).map(Arc::new);
                    exact(func, arg, schema).or_else(by_frame)
                }),
                WindowFunctionDefinition::WindowUDF(_) => None,
            };
            Ok(match exact {
                Some(func) => {
                    let fun = WindowFunctionDefinition::AggregateUDF(func);
                    Transformed::yes(Expr::WindowFunction(Box::new(WindowFunction { fun, ..*call })))
                }
                None => Transformed::no(Expr::WindowFunction(call)),
            })
        }
        other => Ok(Transformed::no(other)),
    }
}

fn exact(func: &AggregateUDF, arg: &Expr, schema: &DFSchema) -> Option<Arc<AggregateUDF>> {
    if func.inner().is::<Exact>() {
        return None;
    }
    let kind = match (func.name(), type_of(arg, schema)?) {
        ("sum", DataType::Int64) => Kind::Sum,
        ("sum", DataType::Decimal128(digits, _)) if digits > SAFE_DIGITS => Kind::Sum,
        ("avg", DataType::Decimal128(..)) => Kind::Average,
        ("min", DataType::Float32 | DataType::Float64) => Kind::Least,
        ("max", DataType::Float32 | DataType::Float64) => Kind::Greatest,
        _ => return None,
    };
    let signature = Signature::user_defined(Volatility::Immutable);
    Some(Arc::new(AggregateUDF::new_from_impl(Exact { kind, signature })))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Sum,
    Average,
    Least,
    Greatest,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Exact {
    kind: Kind,
    signature: Signature,
}

impl AggregateUDFImpl for Exact {
    fn name(&self) -> &str {
        match self.kind {
            Kind::Sum => "sum",
            Kind::Average => "avg",
            Kind::Least => "min",
            Kind::Greatest => "max",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        Ok(types.to_vec())
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match (self.kind, types.first()) {
            (Kind::Sum, Some(DataType::Int64)) => Ok(DataType::Int64),
            (Kind::Sum, Some(DataType::Decimal128(_, scale))) => Ok(DataType::Decimal128(DIGITS, *scale)),
            (Kind::Average, Some(DataType::Decimal128(_, scale))) => {
                Ok(DataType::Decimal128(DIGITS, AVERAGE_SCALE.max(*scale)))
            }
            (Kind::Least | Kind::Greatest, Some(float)) => Ok(float.clone()),
            _ => Err(unexpected(self.name())),
        }
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        self.accumulator_of(&args, Retraction::Never)
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        let input = args.input_fields.first().map(|field| field.data_type().clone());
        let input = input.ok_or_else(|| unexpected(self.name()))?;
        let field =
            |what: &str, ty: DataType| Arc::new(Field::new(format_state_name(args.name, what), ty, true));
        Ok(match self.kind {
            Kind::Sum | Kind::Average if args.is_distinct => {
                vec![field("values", DataType::new_list(input, true))]
            }
            Kind::Sum => vec![field("sum", sum_type(&input))],
            Kind::Average => vec![field("count", DataType::Int64), field("sum", sum_type(&input))],
            Kind::Least | Kind::Greatest => vec![field("value", input)],
        })
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs<'_>) -> bool {
        !args.is_distinct
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        let input = input_type(&args)?;
        Ok(match (self.kind, &input) {
            (Kind::Sum, _) => Box::new(GroupSums::new(&input, args.return_type())),
            (Kind::Average, _) => Box::new(GroupAverages::new(&input, args.return_type())),
            (kind, DataType::Float32) => extremes::<Float32Type>(kind, f32::NEG_INFINITY, f32::NAN),
            (kind, _) => extremes::<Float64Type>(kind, f64::NEG_INFINITY, f64::NAN),
        })
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        self.accumulator_of(&args, Retraction::Possible)
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }
}

/// Whether rows can leave a window frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retraction {
    Never,
    Possible,
}

impl Exact {
    fn accumulator_of(
        &self,
        args: &AccumulatorArgs<'_>,
        retraction: Retraction,
    ) -> Result<Box<dyn Accumulator>> {
        let input = input_type(args)?;
        Ok(match (self.kind, &input) {
            (Kind::Sum | Kind::Average, _) if args.is_distinct => {
                Box::new(DistinctTotal::new(self.total(&input, args)))
            }
            (Kind::Sum | Kind::Average, _) => Box::new(self.total(&input, args)),
            (kind, DataType::Float32) => Box::new(Extreme::<Float32Type>::new(kind, retraction)),
            (kind, _) => Box::new(Extreme::<Float64Type>::new(kind, retraction)),
        })
    }

    fn total(&self, input: &DataType, args: &AccumulatorArgs<'_>) -> Total {
        Total::new(input.clone(), args.return_type().clone(), self.kind == Kind::Average)
    }
}

fn unexpected(name: &str) -> datafusion::common::DataFusionError {
    Error::internal(format!("{name}() does not support this type")).into()
}

fn input_type(args: &AccumulatorArgs<'_>) -> Result<DataType> {
    let field = args.expr_fields.first().ok_or_else(|| unexpected(args.name))?;
    Ok(field.data_type().clone())
}
