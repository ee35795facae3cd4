# The complete Python package of this repository, as pyproject.toml describes it.
{
  lib,
  aws-lambda-powertools,
  python313Packages,
}:

let
  inherit (lib.importTOML ../../pyproject.toml) project;
in
python313Packages.buildPythonPackage {
  pname = project.name;
  inherit (project) version;
  pyproject = true;

  src = lib.fileset.toSource {
    root = ../..;
    fileset = lib.fileset.unions [
      ../../LICENSE
      ../../README.md
      ../../enrichment
      ../../events
      ../../handler
      ../../pyproject.toml
    ];
  };

  build-system = [ python313Packages.hatchling ];
  dependencies = [
    aws-lambda-powertools
    python313Packages.botocore
    python313Packages.numpy
    python313Packages.onnxruntime
    python313Packages.phonenumbers
    python313Packages.pydantic
    python313Packages.python-stdnum
    python313Packages.tokenizers
  ];
  optional-dependencies = {
    cli = [
      python313Packages.boto3
      python313Packages.jmespath
      python313Packages.prometheus-client
      python313Packages.rich
      python313Packages.typer
      python313Packages.urllib3
    ];
    lambda = [ python313Packages.awslambdaric ];
    # In nixpkgs' versions. Without the package that contains the weights, which ticket-bundle fetches.
    export = [
      python313Packages.onnx
      python313Packages.optimum-onnx
      python313Packages.rich
      python313Packages.scikit-learn
      python313Packages.scipy
      python313Packages.sentence-transformers
      python313Packages.sympy
      python313Packages.torch
      python313Packages.transformers
      python313Packages.typer
    ];
  };

  # The tests need a model bundle; `make test` runs them.
  doCheck = false;
  pythonImportsCheck = [
    "enrichment"
    "handler.app"
  ];

  meta = {
    inherit (project) description;
    license = lib.licenses.mit;
  };
}
