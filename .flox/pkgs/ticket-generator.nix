# Sends synthetic tickets to a bucket. Without the library, because it needs no models.
{
  lib,
  makeWrapper,
  python313,
  stdenvNoCC,
}:

let
  inherit (lib.importTOML ../../pyproject.toml) project;
  python = python313.withPackages (packages: [
    packages.boto3
    packages.rich
    packages.typer
  ]);
in
stdenvNoCC.mkDerivation {
  pname = "ticket-generator";
  inherit (project) version;

  src = lib.fileset.toSource {
    root = ../..;
    fileset = ../../events;
  };

  nativeBuildInputs = [ makeWrapper ];
  # Not in lib/python3.13/site-packages, which an environment puts on PYTHONPATH before the developer's own code.
  installPhase = ''
    runHook preInstall
    mkdir -p $out/share/ticket-generator
    cp -r events $out/share/ticket-generator/
    makeWrapper ${python}/bin/python3 $out/bin/ticket-generator \
      --set PYTHONPATH $out/share/ticket-generator \
      --add-flags "-P -m events.generator"
    runHook postInstall
  '';

  doInstallCheck = true;
  installCheckPhase = ''
    runHook preInstallCheck
    $out/bin/ticket-generator --count 1 --out - >/dev/null
    runHook postInstallCheck
  '';

  meta = {
    description = "Sends made-up support tickets to an S3 bucket";
    license = lib.licenses.mit;
    mainProgram = "ticket-generator";
  };
}
