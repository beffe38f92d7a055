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
	server, err := startUntilItRuns(ctx, temporal.Config{
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

// startUntilItRuns tries again, as a supervisor would: Postgres may be broken at the same time.
func startUntilItRuns(ctx context.Context, config temporal.Config) (*temporal.Server, error) {
	for {
		server, err := temporal.Start(ctx, config)
		if err == nil || ctx.Err() != nil {
			return server, err
		}
		config.Log.Warn("Temporal doesn't start; trying again", zap.Error(err))
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return nil, err
		}
	}
}
