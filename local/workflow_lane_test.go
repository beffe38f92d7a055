package main

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/api/workflowservice/v1"
	"google.golang.org/grpc"

	"github.com/kapsel-io/kapsel/api/client"
)

// Temporal takes its time to complete workflows whose attempts are recorded. That holds up no delivery: once, those tasks had
// all of the worker's slots, and whatever was claimed then waited for a free one behind all that came later.
func TestSlowCompletionsHoldUpNoDelivery(t *testing.T) {
	const webhooks = 450 // more than twice what a worker has in flight
	var slow atomic.Bool
	held := make(chan struct{})
	release := sync.OnceFunc(func() { close(held) })
	s := startStackWith(t, stackConfig{toTemporal: func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		if _, completes := req.(*workflowservice.RespondWorkflowTaskCompletedRequest); completes && slow.Load() {
			<-held // beyond ctx: the SDK would give up after 10 s and have a free slot
		}
		return invoke(ctx, method, req, reply, conn, opts...)
	}})
	defer release()
	healthy := startReceiver(t, ok)
	endpoint := s.createLane(t, client.Workflow, client.NewDestination{URL: healthy.URL})
	s.mustIngest(t, endpoint, "the log begins")
	s.awaitSealed(t, time.Minute)

	slow.Store(true)
	s.burst(t, endpoint, webhooks)
	require.Eventually(t, func() bool { return len(healthy.counts()) == webhooks+1 }, time.Minute, 20*time.Millisecond,
		"all are sent while none completes")
	release()
	s.awaitZero(t, 90*time.Second, "select count(*) from deliveries where state = 'pending'")
	s.awaitSealed(t, time.Minute)
	s.checkRecord(t)
	s.requireExplained(t, healthy)
}
