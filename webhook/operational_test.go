package webhook_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/webhook"
)

var (
	happened = time.Date(2026, 11, 23, 12, 0, 0, 123_999_999, time.FixedZone("elsewhere", 3600))
	since    = webhook.MillisecondTime(happened.Add(-time.Minute))
)

// operational are one of each type, as docs/guides/operational.md shows them.
var operational = []struct {
	webhook.Operational
	want string
}{
	{webhook.Operational{Type: webhook.TypeDeliveryDead, Timestamp: webhook.MillisecondTime(happened), Data: webhook.DeliveryDead{
		TenantID: "ten_01kaxq8v4ve1rbvh0m9w5n7t2c", EndpointID: "ep_01kaxq8v4zf60ay1h5g0kq3d8m", DestinationID: "dst_01kaxq8v50fkr9y6mz0e7c4n2v",
		EventID: "evt_01kaxqarh8ec5t8qfvw3s0x9bn", DeliveryID: "dlv_01kaxqarh8f1mrj6w2k9d5t4za", AcceptedAt: since,
		Attempts: 10, Reason: "attempts_exhausted", LastStatus: 503,
	}}, `{"type":"delivery_dead","timestamp":"2026-11-23T11:00:00.123Z","data":{"tenant_id":"ten_01kaxq8v4ve1rbvh0m9w5n7t2c",` +
		`"endpoint_id":"ep_01kaxq8v4zf60ay1h5g0kq3d8m","destination_id":"dst_01kaxq8v50fkr9y6mz0e7c4n2v",` +
		`"event_id":"evt_01kaxqarh8ec5t8qfvw3s0x9bn","delivery_id":"dlv_01kaxqarh8f1mrj6w2k9d5t4za",` +
		`"accepted_at":"2026-11-23T10:59:00.123Z","attempts":10,"reason":"attempts_exhausted","last_status":503,"last_error":""}}`},
	{webhook.Operational{Type: webhook.TypeCircuitOpened, Timestamp: webhook.MillisecondTime(happened), Data: webhook.CircuitOpened{
		TenantID: "ten_01kaxq8v4ve1rbvh0m9w5n7t2c", EndpointID: "ep_01kaxq8v4zf60ay1h5g0kq3d8m", DestinationID: "dst_01kaxq8v50fkr9y6mz0e7c4n2v",
		FailingSince: &since, LastError: "timeout",
	}}, `{"type":"circuit_opened","timestamp":"2026-11-23T11:00:00.123Z","data":{"tenant_id":"ten_01kaxq8v4ve1rbvh0m9w5n7t2c",` +
		`"endpoint_id":"ep_01kaxq8v4zf60ay1h5g0kq3d8m","destination_id":"dst_01kaxq8v50fkr9y6mz0e7c4n2v",` +
		`"failing_since":"2026-11-23T10:59:00.123Z","last_status":0,"last_error":"timeout"}}`},
	{webhook.Operational{Type: webhook.TypeDestinationDisabled, Timestamp: webhook.MillisecondTime(happened), Data: webhook.DestinationDisabled{
		TenantID: "ten_01kaxq8v4ve1rbvh0m9w5n7t2c", EndpointID: "ep_01kaxq8v4zf60ay1h5g0kq3d8m", DestinationID: "dst_01kaxq8v50fkr9y6mz0e7c4n2v",
		Reason: "gone", LastStatus: 410,
	}}, `{"type":"destination_disabled","timestamp":"2026-11-23T11:00:00.123Z","data":{"tenant_id":"ten_01kaxq8v4ve1rbvh0m9w5n7t2c",` +
		`"endpoint_id":"ep_01kaxq8v4zf60ay1h5g0kq3d8m","destination_id":"dst_01kaxq8v50fkr9y6mz0e7c4n2v",` +
		`"reason":"gone","last_status":410,"last_error":""}}`},
}

func TestOperationalWebhooksAreTheGuides(t *testing.T) {
	t.Parallel()
	guide, err := os.ReadFile("../docs/guides/operational.md")
	require.NoError(t, err)
	for _, o := range operational {
		body, err := o.Encode()
		require.NoError(t, err)
		require.Equal(t, o.want, string(body))
		var indented bytes.Buffer
		require.NoError(t, json.Indent(&indented, body, "", "  "))
		require.Contains(t, string(guide), "```json\n"+indented.String()+"\n```\n")
	}
}

// What is told of a dead delivery can go through Kapsel once more, and what is told of that can't.
func TestOperationalWebhooksEndLoops(t *testing.T) {
	t.Parallel()
	const delivery = "dlv_01h455vb4pex5vsknk084sn02q"
	arriving := func(stored http.Header) http.Header {
		return webhook.OutgoingHeaders(stored, nil, webhook.Outgoing{DeliveryID: delivery, SentAt: happened})
	}
	for hops := range webhook.MaxHops + 1 { // of what died
		original := http.Header{}
		if hops > 0 {
			original = header(webhook.HeaderDeliveryID, delivery, webhook.HeaderHops, strconv.Itoa(hops))
		}
		told := arriving(webhook.OperationalHeaders(delivery, original))
		if hops+2 > webhook.MaxHops {
			require.Greater(t, webhook.Hops(told), webhook.MaxHops, "refused")
			continue
		}
		require.Equal(t, webhook.MaxHops, webhook.Hops(told), "taken in")
		again := arriving(webhook.OperationalHeaders(delivery, told))
		require.Greater(t, webhook.Hops(again), webhook.MaxHops, "and what that leads to isn't")
	}
	require.Equal(t, http.Header{"Content-Type": {"application/json"}}, webhook.OperationalHeaders("", nil))
}
