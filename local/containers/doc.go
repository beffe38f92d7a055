// Package containers holds the tests of the Dockerfile and of docker-compose.yml: most without an engine, by reading them as
// Docker would and running what they name on this machine; one with an engine, where there is one.
package containers
