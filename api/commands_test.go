package api_test

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/api"
	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/id"
)

// command sends one without a body.
func (b *testBundle) command(t testing.TB, path string, headers ...string) answer {
	t.Helper()
	return b.do(t, "POST", path, nil, append([]string{"Authorization", "Bearer " + b.key}, headers...)...)
}

// pendingDelivery is the path of a new delivery.
func (b *testBundle) pendingDelivery(t testing.TB) (path string) {
	t.Helper()
	return "/api/v1/deliveries/" + id.Delivery.Format(b.deliveryOf(t, acceptedID(t, b.ingest(t, b.endpoint(t), "{}"))))
}

// deadDelivery is the path of a new delivery that is dead.
func (b *testBundle) deadDelivery(t testing.TB, endpoint string) (path string) {
	t.Helper()
	delivery := b.deliveryOf(t, acceptedID(t, b.ingest(t, endpoint, "{}")))
	b.record(t, delivery, "failed", true)
	return "/api/v1/deliveries/" + id.Delivery.Format(delivery)
}

func TestCommandsAreStored(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path := b.pendingDelivery(t)
	for name, command := range map[string]string{"cancel": "cancel", "retry-now": "retry_now"} {
		for range 2 {
			got := read[openapi.DeliveryCommand](t, b.command(t, path+"/"+name), 202)
			require.Equal(t, openapi.DeliveryCommand{DeliveryID: strings.TrimPrefix(path, "/api/v1/deliveries/"), Command: command}, got)
		}
	}
	require.Equal(t, 1, b.count(t, "deliveries where cancel_requested"))
	require.Equal(t, 2, b.count(t, "delivery_commands where asked = 2 and relayed_at is null"))
}

func TestFinishedDeliveriesTakeNoCommands(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path := b.deadDelivery(t, b.endpoint(t))
	for _, name := range []string{"/cancel", "/retry-now"} {
		problem(t, b.command(t, path+name), 409, "already-finished")
	}
	require.Zero(t, b.count(t, "delivery_commands"))
}

// What isn't there and what is another tenant's are answered alike, and nothing is stored for them.
func TestCommandsToOthersDeliveries(t *testing.T) {
	t.Parallel()
	b := setup(t)
	theirs := []string{b.pendingDelivery(t), b.deadDelivery(t, b.endpoint(t))}
	before := b.count(t, "deliveries")
	_, b.key = b.addTenant(t, "Another Bank")
	for _, path := range append(theirs, "/api/v1/deliveries/"+id.Delivery.Format(id.New()), "/api/v1/deliveries/dlv_x", "/api/v1/deliveries/"+id.Event.Format(id.New())) {
		for _, name := range []string{"/cancel", "/retry-now", "/redeliver"} {
			problem(t, b.command(t, path+name), 404, "not-found")
		}
	}
	require.Zero(t, b.count(t, "delivery_commands"))
	require.Zero(t, b.count(t, "deliveries where cancel_requested"))
	require.Equal(t, before, b.count(t, "deliveries"))
}

func TestCommandsAreReadStrictly(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path := b.pendingDelivery(t)
	for _, name := range []string{"/cancel", "/retry-now", "/redeliver"} {
		problem(t, b.post(t, path+name, `{}`), 400, "malformed-request")
		problem(t, b.command(t, path+name+"?force=true"), 400, "invalid-parameter")
		problem(t, b.do(t, "POST", path+name, nil), 401, "unauthorized")
	}
	for _, key := range []string{"", strings.Repeat("k", 256)} {
		p := problem(t, b.command(t, path+"/redeliver", "Idempotency-Key", key), 400, "invalid-parameter")
		require.Equal(t, "Idempotency-Key", *p.Field)
	}
	problem(t, b.command(t, path+"/redeliver", "Idempotency-Key", "a", "Idempotency-Key", "b"), 400, "invalid-parameter")
	require.Zero(t, b.count(t, "delivery_commands"))
}

func TestRedeliver(t *testing.T) {
	t.Parallel()
	var notified atomic.Int32
	b := setup(t, func(c *api.Config) { c.Notify = func() { notified.Add(1) } })
	endpoint := b.endpoint(t)
	path := b.deadDelivery(t, endpoint)
	before := notified.Load()
	got := read[openapi.Redelivery](t, b.command(t, path+"/redeliver"), 202)
	require.Equal(t, "/api/v1/deliveries/"+got.RedeliveryOf, path)
	require.Greater(t, notified.Load(), before, "dispatchers are woken")

	var event string
	for _, e := range read[openapi.EventPage](t, b.get(t, "/api/v1/events"), 200).Data {
		event = e.ID
	}
	var found *openapi.Delivery
	for _, d := range read[openapi.Event](t, b.get(t, "/api/v1/events/"+event), 200).Deliveries {
		if d.ID == got.DeliveryID {
			found = &d
		}
	}
	require.NotNil(t, found, "it is one of its event's deliveries")
	require.Equal(t, got.RedeliveryOf, *found.RedeliveryOf)
	require.Equal(t, "pending", found.State)
	require.Equal(t, got.RedeliveryOf, *read[openapi.Delivery](t, b.get(t, "/api/v1/deliveries/"+got.DeliveryID), 200).RedeliveryOf)
	for _, d := range read[openapi.DeliveryPage](t, b.get(t, "/api/v1/deliveries"), 200).Data {
		if d.ID == got.DeliveryID {
			require.NotNil(t, d.RedeliveryOf)
			require.Equal(t, got.RedeliveryOf, *d.RedeliveryOf)
		} else {
			require.Nil(t, d.RedeliveryOf)
		}
	}
	problem(t, b.command(t, "/api/v1/deliveries/"+got.DeliveryID+"/redeliver"), 409, "not-finished")

	first := read[openapi.Redelivery](t, b.command(t, path+"/redeliver", "Idempotency-Key", "k"), 202)
	require.Equal(t, first, read[openapi.Redelivery](t, b.command(t, path+"/redeliver", "Idempotency-Key", "k"), 202))
	require.NotEqual(t, got.DeliveryID, first.DeliveryID)
	problem(t, b.command(t, b.deadDelivery(t, endpoint)+"/redeliver", "Idempotency-Key", "k"), 409, "idempotency-conflict")
	require.Equal(t, 4, b.count(t, "deliveries"))

	_, err := b.owner.Exec(t.Context(), "update destinations set deleted_at = now()")
	require.NoError(t, err)
	problem(t, b.command(t, path+"/redeliver"), 409, "destination-removed")
	_, err = b.owner.Exec(t.Context(), "update destinations set deleted_at = null")
	require.NoError(t, err)
	_, err = b.owner.Exec(t.Context(), "delete from event_payloads")
	require.NoError(t, err)
	problem(t, b.command(t, path+"/redeliver"), 410, "erased")
}
