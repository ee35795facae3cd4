# The long-poll worker, with `tickets` and `dlq-replay`. Only these programs, because the package is installed next to
# others in one environment.
{
  lib,
  python313,
  stdenvNoCC,
  ticket-enrichment,
}:

let
  python = python313.withPackages (_: [ ticket-enrichment ] ++ ticket-enrichment.optional-dependencies.cli);
in
stdenvNoCC.mkDerivation {
  pname = "ticket-processor";
  inherit (ticket-enrichment) version;

  dontUnpack = true;
  installPhase = ''
    runHook preInstall
    mkdir -p $out/bin
    ln -s ${python}/bin/ticket-processor ${python}/bin/tickets ${python}/bin/dlq-replay $out/bin/
    runHook postInstall
  '';

  # Imports what the programs need in addition to the function, whose imports ticket-enrichment checks.
  doInstallCheck = true;
  installCheckPhase = ''
    runHook preInstallCheck
    $out/bin/ticket-processor --help >/dev/null
    $out/bin/tickets --help >/dev/null
    $out/bin/dlq-replay --help >/dev/null
    runHook postInstallCheck
  '';

  meta = {
    description = "Enriches support tickets from an SQS queue";
    license = lib.licenses.mit;
    mainProgram = "ticket-processor";
  };
}
