package main

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	sdk "go.temporal.io/sdk/client"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"github.com/kapsel-io/kapsel/local/temporal"
)

// BenchmarkBareWorkflow is the floor of the workflow lane: workflows as cheap as they can be, started eagerly by the
// process that runs them, with one local activity that does nothing, on the stack's Temporal with its settings. Nothing is
// accepted, loaded, sent, recorded or sequenced.
//
//	cd local && go test -run xxx -bench BareWorkflow -benchtime 5000x .
func BenchmarkBareWorkflow(b *testing.B) {
	const taskQueue, inFlight = "bare", 200 // as a worker of Kapsel has
	s, err := startStack(b.Context(), stackConfig{Dir: openDir(b), LogLevel: "info", noWorker: true}, io.Discard)
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, s.stop(nil)) })
	client, err := sdk.Dial(sdk.Options{HostPort: s.temporal, Namespace: temporal.Namespace})
	require.NoError(b, err)
	b.Cleanup(client.Close)
	places := make(chan struct{}, inFlight)
	var ended sync.WaitGroup
	bare := worker.New(client, taskQueue, worker.Options{
		MaxConcurrentWorkflowTaskExecutionSize: 10 * inFlight, MaxConcurrentLocalActivityExecutionSize: 2 * inFlight, WorkerStopTimeout: stopTimeout,
	})
	bare.RegisterWorkflowWithOptions(func(ctx workflow.Context) error {
		ctx = workflow.WithLocalActivityOptions(ctx, workflow.LocalActivityOptions{StartToCloseTimeout: time.Minute})
		return workflow.ExecuteLocalActivity(ctx, func(context.Context) error {
			<-places
			ended.Done()
			return nil
		}).Get(ctx, nil)
	}, workflow.RegisterOptions{Name: "Bare"})
	require.NoError(b, bare.Start())
	b.Cleanup(bare.Stop)

	b.ResetTimer()
	ended.Add(b.N)
	var next atomic.Int64
	var callers sync.WaitGroup
	for range inFlight {
		callers.Go(func() {
			for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
				places <- struct{}{}
				if _, err := client.ExecuteWorkflow(b.Context(), sdk.StartWorkflowOptions{
					ID: fmt.Sprintf("bare_%d_%d", b.N, n), TaskQueue: taskQueue, EnableEagerStart: true,
				}, "Bare"); err != nil {
					panic(err) // who waits would wait for ever
				}
			}
		})
	}
	callers.Wait()
	ended.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "workflows/s")
}
