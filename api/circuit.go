package api

import (
	"encoding/json"

	"github.com/kapsel-io/kapsel/api/openapi"
	"github.com/kapsel-io/kapsel/delivery"
	"github.com/kapsel-io/kapsel/postgres/db"
)

// parseCircuit stores settings with their defaults written out, so that they stay what they were when defaults change.
func parseCircuit(base string, body *openapi.CircuitSettings) (delivery.CircuitSettings, error) {
	if body == nil {
		return delivery.DefaultCircuit(), nil
	}
	for member, zero := range map[string]bool{
		"failures_in_row":     body.FailuresInRow != nil && *body.FailuresInRow == 0,
		"failures_of_last_10": body.FailuresOfLast10 != nil && *body.FailuresOfLast10 == 0,
		"open_ms":             body.OpenMs != nil && *body.OpenMs == 0,
		"successes":           body.Successes != nil && *body.Successes == 0,
		"ramp_per_second":     body.RampPerSecond != nil && *body.RampPerSecond == 0,
	} {
		if zero { // which would mean the default
			return delivery.CircuitSettings{}, invalidField(join(base, member), "must not be 0. Leave it out for the default")
		}
	}
	settings := delivery.CircuitSettings{
		Off:              value(body.Off),
		FailuresInRow:    value(body.FailuresInRow),
		FailuresOfLast10: value(body.FailuresOfLast10),
		OpenMS:           value(body.OpenMs),
		Successes:        value(body.Successes),
		RampPerSecond:    value(body.RampPerSecond),
	}
	if err := settings.Validate(); err != nil {
		return delivery.CircuitSettings{}, invalidBecause(base, err)
	}
	return settings.Resolved(), nil
}

// newCircuitAnswer is the circuit of a destination to which nothing was sent yet.
func newCircuitAnswer(s delivery.CircuitSettings) openapi.Circuit {
	return openapi.Circuit{State: openapi.CircuitState(delivery.CircuitClosed), Settings: circuitSettingsAnswer(s)}
}

func circuitAnswer(row db.DestinationsOfRow) (openapi.Circuit, error) {
	settings := delivery.DefaultCircuit()
	if row.Circuit != nil {
		if err := json.Unmarshal(row.Circuit, &settings); err != nil {
			return openapi.Circuit{}, err
		}
	}
	return openapi.Circuit{
		State: openapi.CircuitState(row.CircuitState), Settings: circuitSettingsAnswer(settings),
		OpenedAt: row.OpenedAt, ProbeAt: row.ProbeUntil, FailingSince: row.FailingSince, LastFailureAt: row.FailedAt,
	}, nil
}

func circuitSettingsAnswer(s delivery.CircuitSettings) openapi.CircuitSettings {
	if s.Off {
		return openapi.CircuitSettings{Off: &s.Off}
	}
	return openapi.CircuitSettings{
		FailuresInRow: &s.FailuresInRow, FailuresOfLast10: &s.FailuresOfLast10, OpenMs: &s.OpenMS,
		Successes: &s.Successes, RampPerSecond: &s.RampPerSecond,
	}
}
