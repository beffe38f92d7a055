// Package api is Kapsel's HTTP side: webhooks come in, people manage endpoints and read events, auditors fetch proofs.
// openapi.yaml is the contract; from it come package openapi (types, routes and the interface that [Server] implements)
// and package client.
//
// The api needs only Postgres. It knows no Temporal: what it commits, workers find in the queue. Two pools keep apart
// what may see all tenants (ingest, whose group commit mixes them) from what sees one tenant's rows only (everything
// that a bearer of an API key asks for), and it is the database that enforces it.
//
// Where to read on: accept.go is the way of a webhook from request to commit, problem.go every answer that isn't a
// success, attestation.go what is handed out of the log.
package api
