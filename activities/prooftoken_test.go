package activities_test

import (
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/kapsel-io/kapsel/attestation"
	"github.com/kapsel-io/kapsel/id"
	"github.com/kapsel-io/kapsel/postgres"
	"github.com/kapsel-io/kapsel/verify"
)

// In both lanes each request to a destination that asks for it carries the token of its delivery, the same in all attempts, and no
// other request does. The leaf's commitment to the headers is without it.
func TestRequestsCarryTheirProofToken(t *testing.T) {
	t.Parallel()
	for _, lane := range []string{"workflow", "batch"} {
		b := setup(t)
		a := b.sender(t)
		key := value[[]byte](t, b, "select proof_key from tenants where id = $1", b.tenant)
		for _, asked := range []bool{true, false} {
			r := newReceiver(t, says(503, ""))
			destination := b.addDestination(t, r.URL)
			b.exec(t, "update destinations set proof_token = $2 where id = $1", destination, asked)
			delivery := b.acceptOf(t, "{}", "Kapsel-Proof-Token: of another Kapsel\r\n", destination)
			in := first(delivery)
			if lane == "batch" {
				mustSendBatch(t, a, b.claimBatch(t, 1, destination), 1, 0)
				in.Epoch = 1 // handed over
			} else {
				b.claim(t, 1, destination)
				recorded(t, a, in)
			}
			in.Attempt, in.Counted = 2, false
			recorded(t, a, in)
			require.Len(t, r.got(), 2)
			for i, got := range r.got() {
				if !asked {
					require.NotContains(t, got.Header, "Kapsel-Proof-Token")
					continue
				}
				require.Equal(t, []string{attestation.ProofToken(key, id.Delivery.Format(delivery))}, got.Header["Kapsel-Proof-Token"])
				_, attempts, leaves := b.read(t, delivery)
				secrets := value[[]byte](t, b, "select secrets from leaf_queue where attempt_id = $1", attempts[i].ID)
				require.Equal(t, leaves[i].HeadersHash, attestation.Commit(verify.LabelHeaders,
					verify.DeriveSalt(secrets[32:], verify.LabelHeaders), attestation.CanonicalHeaders(withoutMessage(got.Header))))
			}
		}
	}
}

func (b *testBundle) acceptOf(t testing.TB, body, headers string, destination uuid.UUID) uuid.UUID {
	t.Helper()
	row := b.acceptance(body, headers, destination)
	_, err := postgres.Accept(t.Context(), b.engine, []*postgres.Acceptance{row})
	require.NoError(t, err)
	return row.Deliveries[0].ID
}

// withoutMessage leaves out what net/http adds to a request.
func withoutMessage(h map[string][]string) map[string][]string {
	sent := map[string][]string{}
	for name, values := range h {
		if name != "Content-Length" && name != "Accept-Encoding" {
			sent[name] = values
		}
	}
	return sent
}
