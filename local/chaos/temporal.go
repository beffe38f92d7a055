package chaos

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"go.uber.org/zap"

	"github.com/kapsel-io/kapsel/local/temporal"
	"github.com/kapsel-io/kapsel/workflows"
)

const (
	temporalStarted = "temporal started"
	// temporalDatabase names the variable with the URL of the Postgres server; it holds a password, so it is no argument.
	temporalDatabase = "CHAOS_TEMPORAL_DATABASE_URL"
)

// ServeTemporal runs Temporal until ctx ends: what Config.Temporal is to execute, with the port as its last argument. It
// says on out when it serves.
func ServeTemporal(ctx context.Context, port int, out io.Writer) error {
	log, err := zap.NewProduction()
	if err != nil {
		return err
	}
	var attributes []string
	for _, key := range workflows.SearchAttributes() {
		attributes = append(attributes, key.GetName())
	}
	server, err := temporal.Start(ctx, temporal.Config{
		DatabaseURL: os.Getenv(temporalDatabase), FrontendPort: port, SearchAttributes: attributes, Log: log,
	})
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintln(out, temporalStarted)
	<-ctx.Done()
	stopping, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return server.Stop(stopping)
}
