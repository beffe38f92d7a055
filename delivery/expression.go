package delivery

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/env"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/interpreter"
)

// The bounds of an expression. Whoever writes one, and whoever sends the webhook, may be hostile.
const (
	maxExpressionNodes = 300
	maxExpressionDepth = 40
	// maxCost is the most steps that an expression may take, as cel-go counts them and weigher adds to it: some 50 ms. At
	// creation it is estimated for texts, lists and maps of assumedSize; what really comes is counted as it is evaluated.
	maxCost     = 500_000
	assumedSize = 1_000
)

// expressionAllows is what the refusal of an expression says is allowed.
const expressionAllows = "Known are event.type, event.content_type, headers and body; the operators ! && || ?: == != < <= > >= in [] .; " +
	"the functions has, size, contains, startsWith, endsWith, string, int, double; and the macros all and exists, not one inside another"

// expressionFunctions are all that there is: nothing that makes text or lists, no regular expressions (a match over a large
// body can't be interrupted), no time, no arithmetic.
var expressionFunctions = []string{
	operators.LogicalAnd, operators.LogicalOr, operators.LogicalNot, operators.Conditional, operators.NotStrictlyFalse,
	operators.Equals, operators.NotEquals, operators.Less, operators.LessEquals, operators.Greater, operators.GreaterEquals,
	operators.In, operators.Index, operators.Negate,
	"size", "contains", "startsWith", "endsWith", "string", "int", "double",
}

// environment is made once, when the first expression is compiled.
var environment = sync.OnceValue(func() *cel.Env {
	subset := env.NewLibrarySubset().AddIncludedMacros(operators.Has, operators.All, operators.Exists)
	for _, name := range expressionFunctions {
		subset.AddIncludedFunctions(env.NewFunction(name))
	}
	e, err := cel.NewCustomEnv(
		cel.StdLib(cel.StdLibSubset(subset)),
		cel.Variable("event.type", cel.StringType),
		cel.Variable("event.content_type", cel.StringType),
		cel.Variable("headers", cel.MapType(cel.StringType, cel.StringType)),
		cel.Variable("body", cel.DynType),
		cel.ParserExpressionSizeLimit(MaxExpression),
		cel.ParserRecursionLimit(maxExpressionDepth),
		cel.ExpressionNodeLimit(maxExpressionNodes),
		cel.ASTValidators(cel.ValidateComprehensionNestingLimit(1)),
	)
	if err != nil { // nothing of it comes from outside
		panic(err)
	}
	return e
})

// expression is a CEL program.
type expression struct{ program cel.Program }

func compileExpression(text string) (*expression, error) {
	if len(text) > MaxExpression {
		return nil, fmt.Errorf("filter: expression must be at most %d bytes, not %d", MaxExpression, len(text))
	}
	ast, issues := environment().Compile(text)
	if issues.Err() != nil {
		return nil, refused(issues)
	}
	if t := ast.OutputType(); !t.IsExactType(cel.BoolType) && !t.IsExactType(cel.DynType) {
		return nil, fmt.Errorf("filter: expression must be true or false, but is of type %s", cel.FormatCELType(t))
	}
	estimate, err := environment().EstimateCost(ast, assumedSizes{})
	if err != nil {
		return nil, fmt.Errorf("filter: expression can't be used: its cost is unknown")
	}
	if estimate.Max > maxCost {
		return nil, fmt.Errorf("filter: expression may take %d steps over a body of ordinary size, more than %d. "+
			"Make it shorter, or look at fewer elements", estimate.Max, maxCost)
	}
	program, err := environment().Program(ast,
		cel.EvalOptions(cel.OptOptimize, cel.OptTrackCost),
		cel.CostTracking(weigher{}),
		cel.CostLimit(maxCost),
		cel.InterruptCheckFrequency(1),
	)
	if err != nil {
		return nil, fmt.Errorf("filter: expression can't be used: %w", err)
	}
	return &expression{program}, nil
}

// refused names the place of the first mistake, counted from 1.
func refused(issues *cel.Issues) error {
	first := issues.Errors()[0]
	return fmt.Errorf("filter: expression is refused at line %d, column %d: %.300s. %s",
		max(first.Location.Line(), 1), max(first.Location.Column(), 0)+1, oneLine.Replace(first.Message), expressionAllows)
}

var oneLine = strings.NewReplacer("\n", " ", "\t", " ", " (in container '')", "")

// errBody is why a body can't be looked at, to tell it from what the expression did wrong.
var errBody = errors.New("body can't be read")

func (e *expression) evaluate(ctx context.Context, m Message) FilterVerdict {
	if ctx.Err() != nil {
		return FilterVerdict{Matches: true, Error: FilterTime}
	}
	result, _, err := e.program.ContextEval(ctx, map[string]any{
		"event.type":         m.EventType,
		"event.content_type": m.ContentType,
		"headers":            m.Headers,
		"body": func() any {
			body, err := m.Body()
			if err != nil {
				return types.WrapErr(errBody)
			}
			return body
		},
	})
	if err != nil {
		return FilterVerdict{Matches: true, Error: classify(err)}
	}
	wanted, ok := result.(types.Bool)
	if !ok {
		return FilterVerdict{Matches: true, Error: FilterNotBool}
	}
	return FilterVerdict{Matches: bool(wanted)}
}

// classify reads cel-go's errors; it has types for few of them.
func classify(err error) FilterError {
	var canceled interpreter.EvalCancelledError
	switch text := err.Error(); {
	case errors.Is(err, errBody):
		return FilterBody
	case errors.As(err, &canceled) && canceled.Cause == interpreter.CostLimitExceeded:
		return FilterCost
	case errors.As(err, &canceled), errors.Is(err, interpreter.InterruptError{}):
		return FilterTime
	case strings.HasPrefix(text, "no such key"), strings.HasPrefix(text, "index out of bounds"), strings.HasPrefix(text, "invalid_argument"):
		return FilterKey
	case strings.HasPrefix(text, "no such overload"), strings.HasPrefix(text, "unsupported"), strings.HasPrefix(text, "type conversion error"),
		strings.HasPrefix(text, "got '"):
		return FilterType
	default:
		return FilterOtherwise
	}
}

// assumedSizes is what the estimate takes the sizes of what isn't known yet for.
type assumedSizes struct{}

func (assumedSizes) EstimateSize(cost.AstNode) *cost.SizeEstimate {
	return &cost.SizeEstimate{Min: 0, Max: assumedSize}
}

func (assumedSizes) EstimateCallCost(string, string, *cost.AstNode, []cost.AstNode) *cost.CallEstimate {
	return nil
}

// weigher charges for what cel-go takes for one step, although it goes through a whole document: comparisons of lists and
// maps, whatever is in them, looking through a list, and counting a text's characters.
type weigher struct{}

func (weigher) CallCost(function, _ string, args []ref.Val, _ ref.Val) *uint64 {
	var steps uint64
	switch function {
	case operators.Equals, operators.NotEquals, operators.In:
		if len(args) != 2 || !hasParts(args[1]) || function != operators.In && !hasParts(args[0]) {
			return nil
		}
		steps = weight(args[0]) + weight(args[1])
	case "size":
		steps = 1
		if text, ok := args[0].(types.String); ok {
			steps += uint64(len(text) / 100)
		}
	default:
		return nil
	}
	return &steps
}

func hasParts(v ref.Val) bool {
	switch v.Value().(type) {
	case map[string]any, []any, []ref.Val, map[ref.Val]ref.Val:
		return true
	}
	return false
}

// weight counts the parts of a value, and its texts by their length.
func weight(v any) uint64 {
	total := uint64(1)
	switch v := v.(type) {
	case string:
		total += uint64(len(v) / 100)
	case map[string]any:
		for name, part := range v {
			total += weight(name) + weight(part)
		}
	case []any:
		for _, part := range v {
			total += weight(part)
		}
	case []ref.Val:
		for _, part := range v {
			total += weight(part)
		}
	case map[ref.Val]ref.Val:
		for name, part := range v {
			total += weight(name) + weight(part)
		}
	case types.String:
		total += uint64(len(v) / 100)
	case types.Bool, types.Int, types.Uint, types.Double, types.Null, types.Bytes, *types.Unknown:
	case ref.Val:
		total += weight(v.Value())
	}
	return total
}
