// Loads a Compose file as `docker compose config` does, and prints what is wrong with it, or its services, published ports, builds and mounted
// files, one a line.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
)

func main() {
	options, err := cli.NewProjectOptions(os.Args[1:], cli.WithName("signal"), cli.WithResolvedPaths(true))
	if err != nil {
		fail(err)
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		fail(err)
	}
	for _, service := range project.Services {
		fmt.Println("service", service.Name, service.Image)
		for _, port := range service.Ports {
			fmt.Println("port", service.Name, port.HostIP, port.Published)
		}
		if service.Build != nil {
			fmt.Println("build", service.Name, service.Build.Target, service.Build.Context)
		}
	}
	for name, config := range project.Configs {
		fmt.Println("file", name, config.File)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
