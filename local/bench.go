package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/kapsel-io/kapsel/local/bench"
)

// benchFlags is what the flags of bench set, besides the stack's.
type benchFlags struct {
	bench.Config
	stack       stackConfig
	url         string
	databaseURL string
	noFloor     bool
	asJSON      bool
}

func benchCommand() *cobra.Command {
	var f benchFlags
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure throughput and latency, beside a bare program on the same machine",
		Long: `Start everything as "local" does, send webhooks, and measure: accepted, delivered and attested
a second, latencies, CPU, memory, commits, WAL. In the same run it measures the floor: a bare
program that accepts, commits, POSTs, records and sequences on the same Postgres, and does
nothing else.

Without --rate the load is a closed loop: --concurrency callers, each with one webhook at a
time, that pause while more than --backlog are accepted and not delivered. With --rate it is an
open one, whose latencies count from the moment at which a webhook was to be sent.

It ends with status 1 if a webhook was lost, delivered twice, or not attested exactly once.
With --url it measures a Kapsel that is already running; --receiver-host is then the address of
this machine at which Kapsel reaches it.`,
		Example: `  go run ./local bench
  go run ./local bench --lane batch --duration 60s --json
  go run ./local bench --rate 100 --no-floor
  go run ./local bench --rate 100 --no-floor --destinations 10 --hanging 1
  go run ./local bench --soak --duration 1h --rate 500
  go run ./local bench --url https://kapsel.example --api-key kapsel_… --receiver-host 10.0.0.7`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runBench(cmd.Context(), f, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	addStackFlags(flags, &f.stack)
	flags.StringVar(&f.Lane, "lane", "auto", "how deliveries are carried: workflow, batch or auto")
	flags.DurationVar(&f.Duration, "duration", 30*time.Second, "how long to send")
	flags.Int64Var(&f.Events, "events", 0, "end after so many webhooks; 0 is after --duration")
	flags.IntVar(&f.Concurrency, "concurrency", 64, "closed loop: callers at once")
	flags.IntVar(&f.Rate, "rate", 0, "open loop: webhooks a second; 0 is a closed loop")
	flags.Int64Var(&f.Backlog, "backlog", 10_000, "closed loop: most webhooks accepted and not delivered; 0 is no limit")
	flags.IntVar(&f.PayloadBytes, "payload-bytes", 1024, "size of a webhook; 0 sends GitHub's real ones")
	flags.DurationVar(&f.Latency, "receiver-latency", 5*time.Millisecond, "how long receivers take")
	flags.Float64Var(&f.Fail, "receiver-fail", 0, "part of the webhooks whose first attempt is answered 503, 0 to 1")
	flags.IntVar(&f.Destinations, "destinations", 1, "endpoints with one destination each, over which webhooks are spread")
	flags.IntVar(&f.Hanging, "hanging", 0, "so many of --destinations answer nothing until their timeout; latencies are those of the others")
	flags.DurationVar(&f.HangTimeout, "hang-timeout", 30*time.Second, "timeout of those that hang")
	flags.Int64Var(&f.Stored, "stored", 0, "fill the database up to so many events before the load")
	flags.BoolVar(&f.IngestOnly, "ingest-only", false, "deliver nothing: measure only how fast webhooks are accepted")
	flags.BoolVar(&f.noFloor, "no-floor", false, "don't measure the bare program")
	flags.BoolVar(&f.Soak, "soak", false, "print a line a minute; fail if CPU, memory, goroutines, queues or tables grow")
	flags.StringVar(&f.CPUProfile, "cpuprofile", "", "write a CPU profile of the load to this file")
	flags.StringVar(&f.HeapProfile, "memprofile", "", "write a profile of the memory at the end of the load to this file")
	flags.BoolVar(&f.asJSON, "json", false, "print one JSON object as the last line; everything else goes to standard error")
	flags.StringVar(&f.url, "url", "", "measure the Kapsel that runs at this URL")
	flags.StringVar(&f.APIKey, "api-key", "", "with --url: an API key of a tenant to measure with")
	flags.StringVar(&f.databaseURL, "database-url", "", "with --url: its Postgres, for the floor and for statistics")
	flags.StringVar(&f.ReceiverHost, "receiver-host", "127.0.0.1", "address of the receivers, which listen there")
	return cmd
}

func (f *benchFlags) validate() error {
	switch {
	case f.Lane != "workflow" && f.Lane != "batch" && f.Lane != "auto":
		return fmt.Errorf("--lane is %q; allowed are workflow, batch and auto", f.Lane)
	case f.Duration <= 0 || f.Concurrency < 1 || f.Rate < 0 || f.PayloadBytes < 0 || f.PayloadBytes > 10<<20:
		return errors.New("--duration and --concurrency must be more than 0, --rate at least 0, --payload-bytes 0 to 10485760")
	case f.Fail < 0 || f.Fail > 1:
		return fmt.Errorf("--receiver-fail is %v; allowed are 0 to 1", f.Fail)
	case f.Destinations < 1 || f.Destinations > 100_000:
		return fmt.Errorf("--destinations is %d; allowed are 1 to 100000", f.Destinations)
	case f.Hanging < 0 || f.Hanging >= f.Destinations && f.Hanging > 0:
		return fmt.Errorf("--hanging is %d; allowed are 0 to %d, one less than --destinations", f.Hanging, f.Destinations-1)
	case f.HangTimeout < 100*time.Millisecond || f.HangTimeout > 2*time.Minute:
		return fmt.Errorf("--hang-timeout is %s; allowed are 100ms to 2m", f.HangTimeout)
	case f.url != "" && f.APIKey == "":
		return errors.New("--url needs --api-key, a key of the tenant to measure with")
	}
	return nil
}

func runBench(ctx context.Context, f benchFlags, out, errOut io.Writer) error {
	if err := f.validate(); err != nil {
		return err
	}
	f.Floor, f.Progress = !f.noFloor, out
	if f.asJSON {
		f.Progress = errOut
	}
	if f.url != "" {
		f.APIURL = f.url
		return f.measure(ctx, f.databaseURL, out)
	}
	var requests atomic.Int64
	f.stack.toTemporal = func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		requests.Add(1)
		return invoke(ctx, method, req, reply, conn, opts...)
	}
	f.TemporalRequests = requests.Load
	f.stack.noWorker = f.IngestOnly
	stack, err := startStack(ctx, f.stack, f.Progress)
	if err != nil {
		return err
	}
	f.APIURL, f.APIKey = stack.apiURL, stack.state.APIKey
	return stack.stop(f.measure(ctx, stack.dbURL, out))
}

func (f *benchFlags) measure(ctx context.Context, databaseURL string, out io.Writer) error {
	if databaseURL != "" {
		var err error
		if f.DB, err = pgxpool.New(ctx, databaseURL); err != nil {
			return err
		}
		defer f.DB.Close()
	}
	result, err := bench.Run(ctx, f.Config)
	if err != nil {
		return err
	}
	if f.asJSON {
		if err := json.NewEncoder(out).Encode(result); err != nil {
			return err
		}
	} else {
		_, _ = fmt.Fprintln(out)
		result.Print(out)
	}
	return result.Err()
}
