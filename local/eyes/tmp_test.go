package eyes
import (
 _ "github.com/prometheus/prometheus/promql/parser"
 _ "github.com/prometheus/prometheus/promql/promqltest"
 _ "github.com/prometheus/prometheus/rules"
 _ "github.com/prometheus/prometheus/model/rulefmt"
)
